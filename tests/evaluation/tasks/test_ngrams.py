"""Every n-gram of the table is a Kneser-Ney model of its own order."""

import numpy as np
import pytest

from bouton.data.store import open_store
from bouton.evaluation import evaluate
from bouton.evaluation.kneser_ney import KneserNey
from bouton.evaluation.subject import Subject
from bouton.runs import Run


def test_each_order_is_a_model_of_its_own(stories: Run) -> None:
    numbers = evaluate(stories, "ngrams")["ngrams"]["numbers"]
    subject = Subject(stories)
    folder = subject.data.prepared.folder
    assert folder is not None
    known, held_out, length = open_store(folder / "train"), subject.store, subject.seq_len
    tokens, text = (np.asarray(store.tokens, np.int64) for store in (known, held_out))
    rows = np.sort(subject.validation_rows)
    at = (rows[len(rows) // 2 :, None] * length + np.arange(length)).ravel()
    for order in (2, 3, 4):
        counts = KneserNey(tokens, known.documents, order, stories.model.vocab_size)
        p = counts.probabilities(counts.keys(text, held_out.documents))[-1]
        assert numbers[f"kn{order}"] == pytest.approx(float(np.exp(-np.log(p[at[at < len(p)]]).mean())))
    assert numbers["uniform"] == pytest.approx(stories.model.vocab_size)
    assert numbers["kn3"] < numbers["unigram"] < numbers["uniform"]
