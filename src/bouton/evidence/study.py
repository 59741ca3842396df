"""``analyse``: everything that is computed from a table of runs, in one object, and its plain form for files."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bouton.errors import ConfigError, DataError
from bouton.evidence.evaluations import Evaluation, evaluations
from bouton.evidence.frame import FINISHED
from bouton.evidence.metrics import DEFAULT, Metric, metric
from bouton.evidence.prices import Costs, Price, costs, prices
from bouton.evidence.statistics import Comparison, Summary, baselines, summarize, values_of
from bouton.evidence.synergy import Synergy, synergies


@dataclass(frozen=True)
class Study:
    """A table of runs, analysed.

    Attributes:
        frame: the runs, as from ``load``.
        measure: the metric in question.
        alpha: level of the tests.
        arms: every arm with a value (controls included) -> its summary over seeds.
        baseline: arm -> the arm that it is compared with.
        comparisons: at equal tokens, in the order of ``baseline``.
        costs: arm -> costs relative to its baseline, controls included.
        prices: arm -> currency -> the comparison at equal cost.
        synergies: pairs of which both mechanisms also ran alone.
        evaluations: what the evaluation tasks measured, if they were run.
    """

    frame: pd.DataFrame
    measure: Metric
    alpha: float
    arms: dict[str, Summary]
    baseline: dict[str, str]
    comparisons: list[Comparison]
    costs: dict[str, Costs]
    prices: dict[str, dict[str, Price]]
    synergies: list[Synergy]
    evaluations: list[Evaluation]


def analyse(
    frame: pd.DataFrame,
    column: str = DEFAULT,
    *,
    baseline: str | None = None,
    alpha: float = 0.05,
    interest: float | None = None,
) -> Study:
    """Statistics, prices and synergies of a table of runs; the arguments are those of ``compare``.

    Raises:
        ConfigError: an unknown metric or baseline, or a level out of range.
        DataError: no run has finished.
    """
    if not 0 < alpha < 1:
        raise ConfigError(f"alpha = {alpha} is not valid: a number > 0 and < 1")
    if not (frame["status"] == FINISHED).any():
        raise DataError(f"none of the {len(frame)} runs has finished yet: there is nothing to report")
    measure = metric(column, frame.columns, interest)
    partner = baselines(frame, baseline)
    arms = {arm: summarize(values) for arm in frame["arm"].unique()
            if (values := values_of(frame, measure.column, arm)[0])}  # fmt: skip
    table = prices(frame, measure, partner, alpha)
    relative = {arm: costs(frame, arm, base) for arm, base in partner.items()}
    controls = frame[frame["control"].notna()].drop_duplicates("arm")
    relative |= {row["arm"]: costs(frame, row["arm"], row["of"]) for row in controls.to_dict("records")}
    at_equal_tokens = [found for entry in table.values() if (found := entry["tokens"].comparison) is not None]
    return Study(frame, measure, alpha, arms, partner, at_equal_tokens, relative, table,
                 synergies(frame, measure, partner, alpha), evaluations(frame, partner))  # fmt: skip


def plain(study: Study) -> dict[str, Any]:
    """The study as nested plain types, for ``statistics.json``."""
    return {
        "metric": dataclasses.asdict(study.measure),
        "alpha": study.alpha,
        "arms": {name: dataclasses.asdict(found) for name, found in study.arms.items()},
        "costs": {name: dataclasses.asdict(found) for name, found in study.costs.items()},
        "comparisons": {
            arm: {currency: dataclasses.asdict(price) for currency, price in entry.items()}
            for arm, entry in study.prices.items()
        },
        "synergies": [dataclasses.asdict(found) for found in study.synergies],
        "evaluations": [dataclasses.asdict(found) for found in study.evaluations],
    }


def table(study: Study) -> pd.DataFrame:
    """One row per arm and currency, for ``statistics.csv``."""
    rows = []
    for arm, entry in study.prices.items():
        for currency, price in entry.items():
            fields = dataclasses.asdict(price.comparison) if price.comparison is not None else {"arm": arm}
            fields |= {name: "; ".join(map(str, fields[name])) for name in ("seeds", "unpaired") if name in fields}
            rows.append({"equal": currency, "cost_ratio": price.ratio, "baseline_from": price.source or price.reason,
                         **fields})  # fmt: skip
    return pd.DataFrame(rows)
