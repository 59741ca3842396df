"""What ``bouton eval`` measured, beside the loss: every arm's numbers, and their paired differences to the baseline.

Many numbers are looked at here, and no task says which way is better, so there are no verdicts: these are the places
where a mechanism may do something that the loss does not show; a claim about one of them needs a study of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from bouton.evaluation import registry
from bouton.evaluation.store import is_evaluated, load_results
from bouton.evidence.frame import FINISHED
from bouton.evidence.statistics import Comparison, Summary, holm, pair, summarize


@dataclass(frozen=True)
class Evaluation:
    """One number of one task in one arm.

    Attributes:
        task: as in ``tasks=[...]``.
        number: its name in the task's result.
        machine_bound: whether it says as much about the machine as about the model.
        summary: over seeds.
        comparison: to the arm's baseline, corrected (Holm) over the arms of this number; None for baselines and
            controls.
    """

    task: str
    number: str
    machine_bound: bool
    arm: str
    summary: Summary
    comparison: Comparison | None


def evaluations(frame: pd.DataFrame, baseline: Mapping[str, str]) -> list[Evaluation]:
    """The headline numbers of all tasks that were measured (best checkpoint) in at least two arms, and vary.

    Args:
        frame: runs, as from :func:`bouton.evidence.load`.
        baseline: arm -> the arm that it is compared with.
    """
    values = _values(frame)
    found: list[Evaluation] = []
    for (task, number), by_arm in values.items():
        if len(by_arm) < 2 or len({value for seeds in by_arm.values() for value in seeds.values()}) == 1:
            continue  # nothing to compare with, or a fact about the task, such as its number of items
        family = [
            pair(arm, by_arm[arm], base, by_arm[base])
            for arm, base in baseline.items()
            if arm in by_arm and base in by_arm
        ]
        corrected = holm([one.p for one in family])
        compared = {one.arm: replace(one, p_holm=p) for one, p in zip(family, corrected, strict=True)}
        bound = registry.tasks()[task.partition(":")[0]].machine_bound
        found += [
            Evaluation(task, number, bound, arm, summarize(seeds), compared.get(arm)) for arm, seeds in by_arm.items()
        ]
    return found


def _values(frame: pd.DataFrame) -> dict[tuple[str, str], dict[str, dict[int, float]]]:
    """(task, number) -> arm -> seed -> value, finite ones only; in the order of tasks, headlines and arms."""
    evaluated = [run for run in frame[frame["status"] == FINISHED].to_dict("records") if is_evaluated(run["folder"])]
    known = registry.tasks() if evaluated else {}
    found: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    for run in evaluated:
        for task, result in load_results(Path(run["folder"])).items():
            if task.partition(":")[0] not in known:  # measured by a package that is not installed here
                continue
            for number in registry.headline(task, result["numbers"]):
                value = float(result["numbers"][number])
                if math.isfinite(value):
                    found.setdefault((task, number), {}).setdefault(run["arm"], {})[int(run["seed"])] = value
    return dict(sorted(found.items(), key=lambda entry: entry[0][0]))
