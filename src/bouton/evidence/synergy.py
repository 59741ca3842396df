"""Do two mechanisms gain more together than the sum of what each gains alone?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from bouton.evidence.metrics import Metric
from bouton.evidence.statistics import Comparison, judge, pair, values_of


@dataclass(frozen=True)
class Synergy:
    """The interaction of a pair: effect of both minus the sum of the single effects, paired by seed.

    ``comparison.difference`` is L(a+b) - L(a) - L(b) + L(baseline); with a metric of which less is better, a negative
    one is more than the sum. Its verdict reads: helps = more than the sum, hurts = less than the sum.
    """

    first: str
    second: str
    arm: str
    comparison: Comparison


def synergies(frame: pd.DataFrame, measure: Metric, pairs: Mapping[str, str], alpha: float = 0.05) -> list[Synergy]:
    """All pairs of which both mechanisms were also run alone, with the same overrides; one family for Holm."""
    arms = frame[frame["control"].isna()].drop_duplicates("arm")
    labels = {(row["mechanism"], row["overrides"]): row["arm"] for row in arms.to_dict("records")}
    found: list[tuple[str, str, str]] = []
    raw: list[Comparison] = []
    for (mechanism, overrides), arm in labels.items():
        terms = mechanism.split("+")
        alone = [labels.get((term, overrides)) for term in terms]
        if len(terms) != 2 or arm not in pairs or alone[0] is None or alone[1] is None:
            continue
        joint, first, second, base = (
            values_of(frame, measure.column, label)[0] for label in (arm, alone[0], alone[1], pairs[arm])
        )
        common = joint.keys() & first.keys() & second.keys() & base.keys()
        expected = {seed: first[seed] + second[seed] - base[seed] for seed in common}
        missing = [f"seed {s}: not all four runs of the pair finished" for s in sorted(joint.keys() - common)]
        found.append((terms[0], terms[1], arm))
        raw.append(pair(arm, {s: joint[s] for s in common}, f"{alone[0]} and {alone[1]} added", expected, missing))
    judged = judge(raw, measure, alpha)
    return [Synergy(*names, comparison) for names, comparison in zip(found, judged, strict=True)]
