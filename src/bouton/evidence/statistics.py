"""Paired statistics: did an arm differ from its baseline, by how much, and if that is open, how many seeds would tell?

Runs of one seed share their initial weights and the order of their data, so the difference within a seed is what is
tested; seeds that only one side has are named and left out. The paired t test gives the verdict, after Holm's
correction over all arms of the question:

helps, hurts
    the corrected p is below ``alpha``; the sign says which.
no detectable difference
    it is not, and two one-sided tests (TOST, at ``alpha``) place the difference within plus or minus the *smallest
    effect of interest*: if there is a difference, it is too small to matter.
too few seeds
    neither: the interval still holds zero as well as differences that would matter. ``seeds_needed`` says how many
    pairs give 80 % power at the observed effect, ``seeds_for_interest`` at the smallest effect of interest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import special, stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from bouton.errors import ConfigError, suggest
from bouton.evidence.frame import FINISHED
from bouton.evidence.metrics import DEFAULT, Metric, metric

HELPS, HURTS, SAME, FEW = "helps", "hurts", "no detectable difference", "too few seeds"
LEVEL = 0.95  # of all intervals
POWER = 0.8
WILCOXON_FROM = 6  # pairs; with five the smallest two-sided p is 0.0625
MOST_SEEDS = 1000  # beyond that no number is given
ROUNDING = 1e-13  # relative: differences that vary by less are equal
LARGEST_T = 1e4  # beyond it an interval of the effect says no more than "huge"

Values = Mapping[int, float]  # seed -> value


@dataclass(frozen=True)
class Summary:
    """Mean over seeds, standard deviation (n - 1), and the 95 % t interval (NaN with one seed)."""

    n: int
    mean: float
    sd: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """An arm against its baseline, paired by seed. Differences are arm minus baseline, in the metric's unit.

    Attributes:
        n: number of pairs; ``seeds`` are theirs.
        unpaired: what was left out and why.
        low, high: 95 % t interval of the mean difference.
        p, p_holm: paired t test, raw and corrected over the family.
        p_wilcoxon: signed-rank test; None below 6 pairs.
        d_z: mean difference / standard deviation of the differences, with its 95 % interval (non-central t).
        p_equivalence: TOST against plus or minus the smallest effect of interest.
        seeds_needed, seeds_for_interest: pairs for 80 % power; None where the verdict is settled, or above 1,000.
    """

    arm: str
    baseline: str
    n: int
    seeds: tuple[int, ...]
    unpaired: tuple[str, ...]
    arm_mean: float
    baseline_mean: float
    difference: float
    sd: float
    low: float
    high: float
    t: float
    p: float
    p_wilcoxon: float | None
    d_z: float
    d_z_low: float
    d_z_high: float
    p_holm: float = math.nan
    p_equivalence: float = math.nan
    verdict: str = FEW
    seeds_needed: int | None = None
    seeds_for_interest: int | None = None


def summarize(values: Sequence[float] | Values) -> Summary:
    """Mean, standard deviation and 95 % interval of one value per seed."""
    x = np.asarray(list(values.values() if isinstance(values, Mapping) else values), dtype=float)
    n = len(x)
    mean = float(x.mean()) if n else math.nan
    sd = float(x.std(ddof=1)) if n > 1 else math.nan
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * sd / math.sqrt(n) if n > 1 else math.nan
    return Summary(n, mean, sd, mean - half, mean + half)


def pair(name: str, arm: Values, baseline_name: str, baseline: Values, unpaired: Sequence[str] = ()) -> Comparison:
    """The raw comparison of two arms over the seeds that both have; :func:`judge` adds what needs its family.

    Args:
        arm, baseline: finite values by seed.
        unpaired: what is already known to be missing, and why.
    """
    seeds = tuple(sorted(arm.keys() & baseline.keys()))
    missing = [f"seed {seed}: no value of {baseline_name}" for seed in sorted(arm.keys() - baseline.keys())]
    missing += [f"seed {seed}: no value of {name}" for seed in sorted(baseline.keys() - arm.keys())]
    told = {text.partition(":")[0] for text in unpaired}
    left_out = [*unpaired, *(text for text in missing if text.partition(":")[0] not in told)]
    a, b = (np.array([side[seed] for seed in seeds], dtype=float) for side in (arm, baseline))
    difference = a - b
    if len(seeds) and np.ptp(difference) <= ROUNDING * max(np.abs(a).max(), np.abs(b).max()):
        difference[:] = difference[0]  # shares of few examples often differ by the same, but for the last bit
    found, n = summarize(difference), len(seeds)
    t = p = d_z = low = high = math.nan
    p_wilcoxon: float | None = None
    if n > 1:
        t, p = _t_test(difference)
        d_z = t / math.sqrt(n)
        low, high = _effect_interval(t, n)
    if n >= WILCOXON_FROM and np.any(difference != 0):
        p_wilcoxon = float(stats.wilcoxon(difference).pvalue)
    return Comparison(
        name, baseline_name, n, seeds, tuple(left_out), float(a.mean()) if n else math.nan,
        float(b.mean()) if n else math.nan, found.mean, found.sd, found.low, found.high, t, p, p_wilcoxon,
        d_z, low, high,
    )  # fmt: skip


def judge(family: Sequence[Comparison], measure: Metric, alpha: float = 0.05) -> list[Comparison]:
    """Correct the p values of all comparisons that answer one question (Holm) and give each its verdict."""
    testable = sum(not math.isnan(one.p) for one in family)
    corrected = holm([one.p for one in family])
    return [_judge(one, p, measure, alpha, max(1, testable)) for one, p in zip(family, corrected, strict=True)]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction over the p values that are numbers; the others stay NaN."""
    testable = [index for index, p in enumerate(p_values) if not math.isnan(p)]
    corrected = dict.fromkeys(range(len(p_values)), math.nan)
    if testable:
        adjusted = multipletests([p_values[index] for index in testable], method="holm")[1]
        corrected.update(zip(testable, map(float, adjusted), strict=True))
    return list(corrected.values())


def compare(
    frame: pd.DataFrame,
    column: str = DEFAULT,
    *,
    baseline: str | None = None,
    alpha: float = 0.05,
    interest: float | None = None,
) -> list[Comparison]:
    """Every arm of a table of runs against its baseline: the verdicts at equal tokens.

    Args:
        frame: as from :func:`bouton.evidence.load`, or any table with ``arm``, ``seed``, ``status``, ``mechanism``,
            ``overrides``, ``control`` and the metric.
        column: the metric.
        baseline: arm that all are compared with; None: the arm without mechanisms, with the same overrides if there
            is one.
        alpha: level of the tests.
        interest: smallest effect of interest, in the metric's unit; None: the metric's own.

    Raises:
        ConfigError: an unknown metric or baseline, or a level out of range.
    """
    if not 0 < alpha < 1:
        raise ConfigError(f"alpha = {alpha} is not valid: a number > 0 and < 1")
    measure = metric(column, frame.columns, interest)
    pairs = baselines(frame, baseline)
    return judge([pair_arms(frame, measure, arm, base) for arm, base in pairs.items()], measure, alpha)


def pair_arms(frame: pd.DataFrame, measure: Metric, arm: str, baseline: str) -> Comparison:
    """:func:`pair` for two arms of a table; runs without a value are named with their status."""
    absent: list[str] = []
    sides = []
    for label in (arm, baseline):
        values, missing = values_of(frame, measure.column, label)
        sides.append(values)
        absent += [f"seed {seed}: {label} {why}" for seed, why in missing.items()]
    return pair(arm, sides[0], baseline, sides[1], absent)


def values_of(frame: pd.DataFrame, column: str, arm: str) -> tuple[dict[int, float], dict[int, str]]:
    """The metric of an arm by seed, and why other seeds of it have none.

    Of several finished runs with one seed the last one (by name of its folder) counts.
    """
    values: dict[int, float] = {}
    missing: dict[int, str] = {}
    for seed, status, value in frame.loc[frame["arm"] == arm, ["seed", "status", column]].itertuples(index=False):
        if status == FINISHED and math.isfinite(value):
            values[int(seed)] = float(value)
        else:
            missing[int(seed)] = str(status) if status != FINISHED else "has no finite value"
    return values, {seed: why for seed, why in missing.items() if seed not in values}


def baselines(frame: pd.DataFrame, baseline: str | None = None) -> dict[str, str]:
    """The baseline of each arm that is neither a baseline nor a control, in the table's order.

    Raises:
        ConfigError: there is no baseline, no such arm, or nothing to compare.
    """
    arms = frame[frame["control"].isna()].drop_duplicates("arm")
    labels = list(arms["arm"])
    if baseline is not None:
        if baseline not in labels:
            raise ConfigError(f"baseline = {baseline} is unknown: {suggest(baseline, labels)}")
        return {label: baseline for label in labels if label != baseline}
    plain = {row["overrides"]: row["arm"] for row in arms.to_dict("records") if row["mechanism"] == "none"}
    if not plain:
        raise ConfigError(f"no arm without mechanisms to compare with: name a baseline=...; arms: {', '.join(labels)}")
    default = next(iter(plain.values()))
    if len(plain) == len(labels):  # only settings of the plain body differ: the first is the baseline
        return {label: default for label in labels if label != default}
    others = arms[arms["mechanism"] != "none"].to_dict("records")
    return {row["arm"]: plain.get(_shared(row["overrides"], row["mechanism"]), default) for row in others}


def _shared(overrides: str, mechanism: str) -> str:
    """The overrides that a plain body can have, too."""
    own = tuple(f"{name}." for name in mechanism.split("+"))
    return " ".join(word for word in overrides.split() if not word.startswith(own))


def _t_test(difference: np.ndarray) -> tuple[float, float]:
    """Paired t and its two-sided p. Differences that are all equal leave no doubt; all zero, no difference."""
    if np.ptp(difference) == 0:
        return (0.0, 1.0) if difference[0] == 0 else (math.copysign(math.inf, difference[0]), 0.0)
    found = stats.ttest_1samp(difference, 0.0)
    return float(found.statistic), float(found.pvalue)


def _effect_interval(t: float, n: int) -> tuple[float, float]:
    """95 % interval of d_z: the non-centralities under which the observed t is at a 2.5 % tail, over sqrt(n)."""
    if not abs(t) < LARGEST_T:  # the time that the inverse takes grows with t
        return math.nan, math.nan
    tail = (1 - LEVEL) / 2
    low, high = special.nctdtrinc(n - 1, 1 - tail, t), special.nctdtrinc(n - 1, tail, t)
    return float(low) / math.sqrt(n), float(high) / math.sqrt(n)


def _judge(one: Comparison, p_holm: float, measure: Metric, alpha: float, family: int) -> Comparison:
    if one.n < 2:
        return replace(one, p_holm=p_holm)
    p_equivalence = _equivalence(one, measure.interest)
    one = replace(one, p_holm=p_holm, p_equivalence=p_equivalence)
    if p_holm < alpha:
        return replace(one, verdict=HELPS if one.difference * measure.sign > 0 else HURTS)
    if p_equivalence < alpha:
        return replace(one, verdict=SAME)
    return replace(
        one,
        seeds_needed=seeds_for(abs(one.d_z), alpha / family),
        seeds_for_interest=seeds_for(measure.interest / one.sd, alpha / family) if one.sd > 0 else None,
    )


def _equivalence(one: Comparison, bound: float) -> float:
    """p of two one-sided paired t tests: that the difference lies within +-bound."""
    if one.sd == 0:
        return 0.0 if abs(one.difference) < bound else 1.0
    error = one.sd / math.sqrt(one.n)
    above, below = (one.difference + bound) / error, (bound - one.difference) / error
    return float(stats.t.sf(min(above, below), one.n - 1))


def seeds_for(effect: float, alpha: float, power: float = POWER) -> int | None:
    """Pairs that a two-sided paired t test needs for ``power`` at an effect d_z; None above 1,000.

    ``alpha`` is the level of Holm's first step (alpha / number of arms), so that the number is on the safe side.
    """
    solver = TTestPower()

    def enough(n: int) -> bool:
        # The tail on the right side alone: the other one adds nothing, and its value is NaN far out in scipy.
        return bool(solver.power(effect, n, alpha / 2, alternative="larger") >= power)

    if not effect > 0 or not enough(MOST_SEEDS):
        return None
    low, high = 1, MOST_SEEDS  # high is enough, low is not: one pair has no standard deviation
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
