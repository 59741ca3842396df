"""Repetition of texts whose loops are known, and of a run's greedy continuations."""

import pytest

from bouton.evaluation import evaluate
from bouton.evaluation.tasks.repetition import describe
from bouton.runs import Run


def test_a_text_without_repetition() -> None:
    found = describe(list(range(40)), 64)
    assert found == {"distinct_1": 1, "distinct_2": 1, "distinct_3": 1, "distinct_4": 1, "longest_run": 0,
                     "loop_fraction": 0, "looping": 0}  # fmt: skip


def test_a_loop_at_the_end() -> None:
    found = describe([*range(10), *[50, 51, 52] * 10], 64)
    assert found["longest_run"] == 30
    assert found["loop_fraction"] == pytest.approx(30 / 40)
    assert found["looping"] == 1
    assert found["distinct_1"] == 13 / 40


def test_twice_is_a_run_but_no_loop() -> None:
    found = describe([1, 2, 3, 4, 1, 2, 3, 4, *range(10, 30)], 64)
    assert (found["longest_run"], found["loop_fraction"], found["looping"]) == (8, 0, 0)


def test_a_loop_in_the_middle_does_not_end_the_text() -> None:
    found = describe([*range(20), 7, 7, 7, 7, *range(20, 40)], 64)
    assert found["loop_fraction"] == pytest.approx(5 / 44) or found["loop_fraction"] == pytest.approx(4 / 44)
    assert found["looping"] == 0


def test_blocks_longer_than_the_period_do_not_count() -> None:
    block = list(range(12))
    assert describe(block * 4, 12)["looping"] == 1
    assert describe(block * 4, 11)["looping"] == 0


def test_samples_are_greedy_and_stand_beside_the_text(stories: Run) -> None:
    options = {"repetition": {"samples": 6, "prompt": 4, "length": 40}}
    found = evaluate(stories, ["repetition"], options)["repetition"]
    sample = found["tables"]["samples"][0]
    expected = stories.generate(sample["prompt"], temperature=0.0, max_new_tokens=40)
    assert sample["text"] == expected
    numbers = found["numbers"]
    assert numbers["samples"] >= 2
    assert numbers["reference_looping"] == 0 and 0 < numbers["distinct_2"] <= 1
