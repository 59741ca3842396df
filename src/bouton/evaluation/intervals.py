"""Point estimates with standard errors and 95 % intervals.

Tokens of one row of text depend on each other, rows hardly do: whatever is summed over tokens takes the row (or the
document, the item) as the unit that varies, so that the intervals are not too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A value, its standard error, and the ends of its 95 % interval; NaN where the sample does not tell."""

    value: float
    se: float
    low: float
    high: float

    def map(self, function: Callable[[float], float]) -> Estimate:
        """The estimate of an increasing ``function`` of the value; its standard error by the width of the interval."""
        low, high = function(self.low), function(self.high)
        width = self.high - self.low
        return Estimate(function(self.value), self.se * (high - low) / width if width else 0.0, low, high)


def mean(values: ArrayLike) -> Estimate:
    """The mean of independent values, with Student's interval."""
    x = np.asarray(values, dtype=np.float64)
    return ratio(x, np.ones_like(x))


def ratio(numerators: ArrayLike, denominators: ArrayLike) -> Estimate:
    """sum(numerators) / sum(denominators) over independent units, e.g. losses and tokens of rows.

    The standard error is that of the linearised ratio (Cochran 1977, section 6.4), the interval Student's.
    """
    from scipy import stats

    a, b = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    n, total = len(a), float(b.sum())
    if total == 0:
        return Estimate(math.nan, math.nan, math.nan, math.nan)
    value = float(a.sum()) / total
    if n < 2:
        return Estimate(value, math.nan, math.nan, math.nan)
    se = float(np.sqrt(n / (n - 1) * np.sum((a - value * b) ** 2))) / total
    half = float(stats.t.ppf(0.5 + LEVEL / 2, n - 1)) * se
    return Estimate(value, se, value - half, value + half)


def proportion(successes: int, trials: int) -> Estimate:
    """A share of independent trials, with Wilson's interval, which also holds near 0 and 1."""
    from scipy import stats

    if trials == 0:
        return Estimate(math.nan, math.nan, math.nan, math.nan)
    p = successes / trials
    interval = stats.binomtest(int(successes), int(trials)).proportion_ci(LEVEL, method="wilson")
    return Estimate(p, math.sqrt(p * (1 - p) / trials), float(interval.low), float(interval.high))


def share(successes: ArrayLike, trials: ArrayLike) -> Estimate:
    """sum(successes) / sum(trials) over independent units of several trials each: a proportion in clusters.

    The interval is that of :func:`ratio` within [0, 1]. Where all units agree they tell no variance; then it is
    Wilson's, with each unit as one trial.
    """
    a, b = np.asarray(successes, dtype=np.float64), np.asarray(trials, dtype=np.float64)
    found = ratio(a, b)
    if found.se > 0 or math.isnan(found.value) or found.value not in (0.0, 1.0):
        return Estimate(found.value, found.se, max(found.low, 0.0), min(found.high, 1.0))
    units = int((b > 0).sum())
    wilson = proportion(units if found.value else 0, units)
    return Estimate(found.value, found.se, wilson.low, wilson.high)


def median(values: ArrayLike, *, resamples: int = 1000, seed: int = 0) -> Estimate:
    """The median, with the percentile bootstrap's interval."""
    x = np.asarray(values, dtype=np.float64)
    value = float(np.median(x)) if len(x) else math.nan
    if len(x) < 2:
        return Estimate(value, math.nan, math.nan, math.nan)
    drawn = np.random.default_rng(seed).integers(len(x), size=(resamples, len(x)))
    medians = np.median(x[drawn], axis=1)
    low, high = np.quantile(medians, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    return Estimate(value, float(medians.std(ddof=1)), float(low), float(high))


def bootstrap(sums: Array, statistic: Callable[[Array], Array], *, resamples: int = 1000, seed: int = 0) -> Estimate:
    """A statistic of column sums over independent units, with the percentile bootstrap's interval (Efron 1979).

    Args:
        sums: (units, k), what each unit contributes.
        statistic: (m, k) column sums -> (m,) values.
        resamples: samples of as many units, drawn with replacement.
    """
    value = float(statistic(sums.sum(0, keepdims=True))[0])
    units = len(sums)
    if units < 2:
        return Estimate(value, math.nan, math.nan, math.nan)
    generator = np.random.default_rng(seed)
    draws = []
    for begin in range(0, resamples, 100):  # 100 at a time: the counts are (100, units)
        counts = generator.multinomial(units, np.full(units, 1 / units), min(100, resamples - begin))
        draws.append(statistic(counts @ sums))
    values = np.concatenate(draws)
    low, high = np.nanquantile(values, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    return Estimate(value, float(np.nanstd(values, ddof=1)), float(low), float(high))
