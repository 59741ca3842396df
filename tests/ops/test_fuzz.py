"""Random calls, half of them wrong: a right answer or an exception, never a crash. More in benchmarks/fuzz.py."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bouton.testing.fuzz import Call, WrongAnswerError, attempt, make_call

counts: Counter[str] = Counter()


@given(st.integers(0, 2**32))
@settings(max_examples=1000, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
def some_calls(seed: int) -> None:
    counts[attempt(make_call(Random(seed)))] += 1


def test_a_right_answer_or_an_exception() -> None:
    counts.clear()
    some_calls()
    assert counts["right"] > 200 and counts.total() - counts["right"] - counts["answer"] > 100, counts


def call(run, exact=None) -> Call:
    return Call("toy", {"x": torch.ones(2)}, run, exact)


def fails(error: BaseException):
    def run(_):
        raise error

    return run


class PanicException(BaseException):
    pass


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda given: (given["x"] + 1,), "relative error"),
        (lambda given: (given["x"] * float("nan"),), "relative error"),
        (lambda given: (given["x"][:1],), "shape"),
        (fails(PanicException("index out of bounds")), "panicked"),
        (fails(IndexError("no")), "IndexError"),
        (fails(ValueError("")), "ValueError"),
    ],
)
def test_failures_are_seen(run, message: str) -> None:
    with pytest.raises(WrongAnswerError, match=message):
        attempt(call(run, lambda given: (given["x"].double(),)))
    assert attempt(call(lambda given: (given["x"],), lambda given: (given["x"].double(),))) == "right"
