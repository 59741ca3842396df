"""Recall at the number of pairs of training is the validation accuracy of the run."""

import pytest

from bouton.errors import EvaluationError
from bouton.evaluation import evaluate
from bouton.runs import Run


def test_the_number_of_training_gives_the_accuracy_of_the_summary(recall: Run) -> None:
    found = evaluate(recall, ["recall"], {"recall": {"rows": 64}})["recall"]
    assert found["numbers"]["accuracy"] == pytest.approx(recall.summary["best"]["val_accuracy"])
    assert found["numbers"]["chance"] == 1 / 8
    assert [row["pairs"] for row in found["tables"]["pairs"]] == [1, 2, 4]


def test_rows_grow_where_the_pairs_need_it(recall: Run) -> None:
    found = evaluate(recall, ["recall"], {"recall": {"pairs": [1, 6], "rows": 8}})["recall"]
    assert [row["seq_len"] for row in found["tables"]["pairs"]] == [16, 24]
    assert "accuracy" not in found["numbers"] and "accuracy_6_pairs" in found["numbers"]


def test_impossible_numbers_and_other_runs_are_refused(recall: Run, stories: Run) -> None:
    with pytest.raises(EvaluationError, match=r"recall\.pairs = 9: data\.vocab_size=16 is too small"):
        evaluate(recall, ["recall"], {"recall": {"pairs": 9}})
    with pytest.raises(EvaluationError, match="task recall needs a run that was trained on data=mqar, this one has"):
        evaluate(stories, ["recall"])
