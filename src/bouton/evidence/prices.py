"""Every gain beside its price: the same comparison at equal tokens, FLOPs, wall-clock and parameters.

An arm costs, per token, r times the baseline's FLOPs or seconds. At equal cost the baseline may therefore see r times
the tokens, and its loss there is what the arm has to beat. Where that loss comes from:

the baseline
    r is 1 within a hundredth: nothing to pay.
a longer run
    r > 1: baseline runs with the extra steps, made by the grid as the controls ``none@flops`` and ``none@time``, each
    with a schedule of its own that ends with its last step. Between two such budgets the loss is interpolated
    linearly in the logarithm of the tokens, seed by seed; the loss is convex there, so this is at most too
    kind to the arm, and exact for the arm that set the budget.
its learning curve
    r < 1: read off at r times the tokens. The schedule had not ended there, which flatters the arm; the report says so.

For parameters the control ``none@params`` is a wider body at equal tokens, interpolated in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from bouton.evidence.frame import FINISHED, metrics_table
from bouton.evidence.metrics import Metric
from bouton.evidence.statistics import Comparison, Values, judge, pair, values_of

TOLERANCE = {"flops": 0.01, "time": 0.01, "params": 0.001}  # ratios this close to 1 count as equal
CURRENCIES = {"tokens": "tokens", "flops": "FLOPs", "time": "wall-clock", "params": "parameters"}


@dataclass(frozen=True)
class Costs:
    """What an arm costs relative to its baseline, 1 = the same; NaN where it was not recorded.

    ``flops`` and ``time`` are per training token; ``time`` is the median over paired seeds of the ratio of training
    speeds (validation and checkpoints left out), ``memory`` of the peaks.
    """

    flops: float
    time: float
    params: float
    memory: float


@dataclass(frozen=True)
class Price:
    """A comparison at equal cost.

    Attributes:
        currency: ``tokens``, ``flops``, ``time`` or ``params``.
        ratio: what the arm costs in it, relative to the baseline.
        source: where the baseline's figure comes from; ``""`` with a ``reason`` where there is none.
        comparison: None where the baseline was not run with that budget.
        reason: why not.
    """

    currency: str
    ratio: float
    source: str
    comparison: Comparison | None
    reason: str = ""


def costs(frame: pd.DataFrame, arm: str, baseline: str) -> Costs:
    """Relative costs of an arm, over its finished runs that have a partner."""
    finished = frame[frame["status"] == FINISHED].drop_duplicates(["arm", "seed"], keep="last")
    a, b = (finished[finished["arm"] == label].set_index("seed") for label in (arm, baseline))
    both = a.index.intersection(b.index)

    def ratio(column: str) -> float:
        if not len(both) or column not in finished:
            return math.nan
        x, y = (pd.to_numeric(side.loc[both, column], errors="coerce") for side in (a, b))
        return float((x / y).median())

    return Costs(ratio("training_flops_per_token"), 1 / ratio("tokens_per_second"), ratio("parameters"),
                 ratio("peak_memory_bytes"))  # fmt: skip


def prices(
    frame: pd.DataFrame, measure: Metric, pairs: Mapping[str, str], alpha: float = 0.05
) -> dict[str, dict[str, Price]]:
    """arm -> currency -> price, for every arm and its baseline. Holm's family is one currency over all arms."""
    relative = {arm: costs(frame, arm, base) for arm, base in pairs.items()}
    table: dict[str, dict[str, Price]] = {arm: {} for arm in pairs}
    for currency in CURRENCIES:
        found = {
            arm: _price(frame, measure, arm, base, currency, getattr(relative[arm], currency, 1.0))
            for arm, base in pairs.items()
        }
        raw = {arm: price.comparison for arm, price in found.items() if price.comparison is not None}
        judged = dict(zip(raw, judge(list(raw.values()), measure, alpha), strict=True))
        for arm, price in found.items():
            table[arm][currency] = Price(
                currency, price.ratio, price.source, judged.get(arm, price.comparison), price.reason
            )
    return table


def _price(frame: pd.DataFrame, measure: Metric, arm: str, baseline: str, currency: str, ratio: float) -> Price:
    values, missing = values_of(frame, measure.column, arm)
    plain, plain_missing = values_of(frame, measure.column, baseline)
    absent = [f"seed {s}: {name} {why}" for name, of in ((arm, missing), (baseline, plain_missing))
              for s, why in of.items()]  # fmt: skip
    if currency == "tokens":
        return Price(currency, 1.0, "the baseline", pair(arm, values, baseline, plain, absent))
    if math.isnan(ratio):
        return Price(currency, ratio, "", None, "its cost was not recorded")
    budget, source = _baseline_at(frame, measure, baseline, plain, currency, ratio)
    if not budget:
        return Price(currency, ratio, "", None, source)
    return Price(currency, ratio, source, pair(arm, values, baseline, budget, absent))


def _baseline_at(
    frame: pd.DataFrame, measure: Metric, baseline: str, plain: Values, currency: str, ratio: float
) -> tuple[dict[int, float], str]:
    """The baseline's metric by seed at ``ratio`` times its own budget, and where it is from (or why there is none)."""
    slack = TOLERANCE[currency]
    if abs(ratio - 1) <= slack or (ratio < 1 and currency == "params"):
        return dict(plain), "the baseline" if ratio > 1 - slack else "the baseline, although it is larger"
    if ratio < 1:
        return _on_curve(frame, measure, baseline, ratio), "its learning curve"
    kinds, column = (("params",), "parameters") if currency == "params" else (("flops", "time"), "tokens")
    found: dict[int, float] = {}
    exact = True
    longest = 1.0
    for seed, value in plain.items():
        ratios, metrics = _anchors(frame, measure, baseline, seed, value, kinds, column)
        longest = max(longest, ratios[-1])
        if ratio > ratios[-1] * (1 + slack):
            continue
        found[seed] = float(np.interp(math.log(ratio), np.log(ratios), metrics))
        exact = exact and bool(np.min(np.abs(ratios / ratio - 1)) <= slack)
    what = "a wider body" if currency == "params" else "a longer run"
    if not found:
        return {}, f"the baseline was run with {longest:.2f} of its {column} at most, {ratio:.2f} are needed"
    return found, what if exact else f"{what}, interpolated"


def _anchors(
    frame: pd.DataFrame, measure: Metric, baseline: str, seed: int, value: float, kinds: tuple[str, ...], column: str
) -> tuple[np.ndarray, np.ndarray]:
    """The budgets (relative, ascending) at which the baseline was run with this seed, and its metric there."""
    finished = frame[(frame["status"] == FINISHED) & (frame["seed"] == seed)]
    own = finished[finished["arm"] == baseline]
    controls = finished[(finished["of"] == baseline) & finished["control"].isin(kinds)]
    unit = float(own[column].iloc[-1])
    points = {1.0: value}
    for run in controls.to_dict("records"):
        if run[column] > unit and math.isfinite(run[measure.column]):
            points[float(run[column]) / unit] = float(run[measure.column])
    ratios = np.array(sorted(points))
    return ratios, np.array([points[ratio] for ratio in ratios])


def _on_curve(frame: pd.DataFrame, measure: Metric, baseline: str, ratio: float) -> dict[int, float]:
    """The validation curve of each baseline run at ``ratio`` of its steps, interpolated in the logarithm of steps."""
    found: dict[int, float] = {}
    if measure.curve is None:
        return found
    runs = frame[(frame["arm"] == baseline) & (frame["status"] == FINISHED)]
    for run in runs.to_dict("records"):
        table = metrics_table(Path(run["folder"]))
        if measure.curve not in table:
            continue
        points = table[["step", measure.curve]].dropna()
        points = points[points["step"] > 0]
        step = ratio * float(run["step"])
        if len(points) and points["step"].iloc[0] <= step:
            found[int(run["seed"])] = float(np.interp(math.log(step), np.log(points["step"]), points[measure.curve]))
    return found
