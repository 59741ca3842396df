"""Intervals against other libraries, and against what they promise: 95 % of them hold the truth."""

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from bouton.evaluation.intervals import Estimate, bootstrap, mean, median, proportion, ratio, share


def test_the_mean_has_students_interval() -> None:
    x = np.random.default_rng(0).normal(3, 2, 20)
    found = mean(x)
    low, high = stats.t.interval(0.95, 19, loc=x.mean(), scale=stats.sem(x))
    assert [found.value, found.se, found.low, found.high] == pytest.approx([x.mean(), stats.sem(x), low, high])


def test_a_proportion_has_wilsons_interval() -> None:
    for k, n in ((0, 10), (7, 10), (300, 1000)):
        found = proportion(k, n)
        assert (found.low, found.high) == pytest.approx(proportion_confint(k, n, method="wilson"), abs=1e-9)
        assert found.value == k / n


def test_a_ratio_counts_units_and_not_tokens() -> None:
    # Every token of a row is the same: rows are all that there is to count.
    rows = np.random.default_rng(1).normal(size=30)
    assert ratio(rows * 50, np.full(30, 50)) == mean(rows)


@pytest.mark.parametrize("kind", ["ratio", "bootstrap", "median"])
def test_intervals_hold_the_truth_as_often_as_they_say(kind: str) -> None:
    draw = np.random.default_rng(2)
    held, trials = 0, 300
    for _ in range(trials):
        count = draw.integers(5, 50, size=40)
        level = draw.normal(2.0, 0.5, size=40)  # rows differ, their tokens agree
        if kind == "median":
            found = median(level, resamples=200)
        elif kind == "ratio":
            found = ratio(level * count, count)
        else:
            found = bootstrap(np.stack([level * count, count], 1), lambda s: s[:, 0] / s[:, 1], resamples=200)
        held += found.low <= 2.0 <= found.high
    assert 0.89 <= held / trials <= 0.99


def test_units_that_all_agree_are_not_certainty() -> None:
    found = share([4, 4, 4], [4, 4, 4])
    assert found.value == 1.0 and found.high == pytest.approx(1.0)
    assert found.low == pytest.approx(proportion(3, 3).low)
    none = share([0, 0], [5, 5])
    assert none.value == 0 and none.high == pytest.approx(proportion(0, 2).high)
    assert share([1, 3], [4, 4]).low >= 0


def test_a_function_of_an_estimate_keeps_the_bounds() -> None:
    found = Estimate(1.0, 0.1, 0.8, 1.2).map(math.exp)
    assert (found.value, found.low, found.high) == (math.e, math.exp(0.8), math.exp(1.2))
    assert found.se == pytest.approx(math.e * 0.1, rel=0.02)


def test_samples_of_one_or_none_say_that_they_do_not_know() -> None:
    assert math.isnan(mean([1.0]).se) and mean([1.0]).value == 1.0
    for found in (proportion(0, 0), ratio([], []), bootstrap(np.ones((1, 2)), lambda s: s[:, 0])):
        assert math.isnan(found.low)
