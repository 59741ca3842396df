"""Items made from a text whose sentences are known, and the choice by likelihood."""

import pytest
import torch

from bouton.errors import EvaluationError
from bouton.evaluation import evaluate
from bouton.evaluation.scoring import Score
from bouton.evaluation.subject import Subject
from bouton.evaluation.tasks.cloze import _right, _score, make_items
from bouton.runs import Run

TEXTS = {
    number: f"It was a long and very cold day in the {a}. We all went to the {b}! Did it end in a {c}? The End."
    for number, (a, b, c) in enumerate(
        [("park", "zoo", "rain"), ("zoo", "park", "storm"), ("town", "park", "rain"), ("park", "zoo", "storm")]
    )
}


def test_items_are_last_words_with_others_of_the_same_frequency() -> None:
    items = make_items(TEXTS, 100, 1)
    # zoo ends 3 sentences, rain and storm 2 each; nothing comes as often as park (4) or as rarely as town (1)
    assert len(items) == 7
    for item in items:
        text = TEXTS[item.document]
        assert f"{item.context} {item.words[0]}{item.mark}" == text[: len(item.context) + len(item.words[0]) + 2]
        assert len(set(item.words)) == 2 and set(item.words) <= {"zoo", "rain", "storm"}
    assert {item.mark for item in items} <= {".", "!", "?"}


def test_items_are_the_same_every_time_and_spread_over_documents() -> None:
    items = make_items(TEXTS, 4, 1)
    assert items == make_items(dict(reversed(TEXTS.items())), 4, 1)
    assert sorted(item.document for item in items) == [0, 1, 2, 3]


def test_the_first_word_must_win_alone() -> None:
    def row(*values: float) -> list[Score]:
        return [Score(value, False, 1, 0) for value in values]

    assert _right([row(-1, -2, -3), row(-2, -1, -3), row(-1, -1, -3)]) == [1, 0, 0]


def test_scores_are_those_of_the_words_after_the_document(stories: Run) -> None:
    subject = Subject(stories)
    texts = {0: stories.tokenizer.decode(subject.store.document(0)[1:]), **{9 + k: v for k, v in TEXTS.items()}}
    items = make_items(texts, 3, 1)
    scores = _score(subject, items, with_context=True)
    for item, row in zip(items, scores, strict=True):
        for word, found in zip(item.words, row, strict=True):
            ending = stories.tokenizer.encode(f" {word}{item.mark}")
            tokens = [stories.tokenizer.eot_id, *stories.tokenizer.encode(item.context)[-(32 - len(ending)) :], *ending]
            with torch.no_grad():
                logits, _ = stories.model(torch.tensor([tokens]))
            p = torch.log_softmax(logits[0, -1 - len(ending) : -1].double(), -1)
            expected = p.gather(1, torch.tensor(ending)[:, None]).sum().item()
            assert found.logprob == pytest.approx(expected, abs=1e-4)


def test_the_task_reports_chance_and_an_interval(stories: Run) -> None:
    numbers = evaluate(stories, ["cloze"], {"cloze": {"items": 60}})["cloze"]["numbers"]
    assert numbers["chance"] == 0.25 and numbers["items"] == 60 and numbers["documents"] > 40
    assert 0 <= numbers["accuracy_low"] < numbers["accuracy"] < numbers["accuracy_high"] <= 1


def test_a_text_with_too_few_sentences_is_refused(stories: Run) -> None:
    with pytest.raises(EvaluationError, match=r"has 0 sentences with a last word that 500 other words match"):
        evaluate(stories, ["cloze"], {"cloze": {"distractors": 500}})
