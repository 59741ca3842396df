"""experts: is the work of a mixture of experts spread over its experts?

Works with any body or mechanism that keeps, as organism state, a buffer named ``expert_use`` whose last dimension
counts experts: the share of the tokens that each gets, in any unit. A buffer ``expert_alive`` beside it (1: a slot that
is occupied) leaves empty slots out; ``expert_energy`` and ``expert_fatigue`` are described where they exist.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from bouton.errors import EvaluationError
from bouton.evaluation.base import Result, Row, Task
from bouton.evaluation.intervals import mean
from bouton.evaluation.options import Params, real
from bouton.evaluation.registry import register
from bouton.evaluation.subject import Subject
from bouton.models.experts import gini

Array = NDArray[np.float64]
USE, ALIVE, OTHERS = "expert_use", "expert_alive", ("expert_energy", "expert_fatigue")


@dataclass(frozen=True)
class ExpertOptions(Params):
    dead: float = real(0.01, "an expert with less than that part of its fair share is dead", low=0, high=1)


@register
class Experts(Task):
    name = "experts"
    summary = "Gini coefficient, dead fraction and entropy of the use of experts (bodies that have experts)"
    source = "load balance: Shazeer et al. 2017 (arXiv 1701.06538); Gini 1912"
    Options = ExpertOptions
    headline: ClassVar = ("gini", "dead_fraction", "entropy", "experts")

    def check(self, subject: Subject) -> None:
        if not _groups(subject):
            raise EvaluationError("task experts: this run has no experts")

    def measure(self, subject: Subject, options: ExpertOptions) -> Result:
        result = Result()
        table: list[Row] = []
        for place, buffers in _groups(subject).items():
            alive = buffers.get(ALIVE)
            use = buffers[USE]
            for index in range(len(use)):
                there = np.ones(use.shape[1], bool) if alive is None else alive[index] > 0.5
                row = {"place": place, "group": index, **health(use[index][there], options.dead)}
                for name in OTHERS:
                    if name in buffers and there.any():
                        values = buffers[name][index][there]
                        row |= {f"{name}_mean": values.mean(), f"{name}_min": values.min(), f"{name}_max": values.max()}
                table.append(row)
        result.tables["groups"] = table
        for name in ("gini", "dead_fraction", "entropy", "experts"):
            result.put(name, mean([row[name] for row in table]))
        return result


def health(use: Array, dead: float = 0.01) -> dict[str, float]:
    """Of one group of E experts: ``gini`` (0 to 1 - 1/E), ``dead_fraction``, ``entropy`` / ln E, ``experts``."""
    n, total = len(use), float(use.sum())
    if n == 0 or total <= 0:
        return {"gini": np.nan, "dead_fraction": 1.0 if n else np.nan, "entropy": np.nan, "experts": float(n)}
    share = use / total
    positive = share[share > 0]
    entropy = float(-(positive * np.log(positive)).sum())
    return {
        "gini": float(gini(torch.from_numpy(share))),
        "dead_fraction": float((share < dead / n).mean()),
        "entropy": entropy / np.log(n) if n > 1 else 1.0,
        "experts": float(n),
    }


def _groups(subject: Subject) -> dict[str, dict[str, Array]]:
    """Module -> its buffers about experts, each (groups, experts)."""
    found: dict[str, dict[str, Any]] = {}
    for name, buffer in subject.model.named_buffers():
        place, _, leaf = name.rpartition(".")
        if leaf in (USE, ALIVE, *OTHERS) and buffer.ndim >= 1:
            found.setdefault(place, {})[leaf] = buffer.detach().double().cpu().numpy().reshape(-1, buffer.shape[-1])
    return {place: buffers for place, buffers in found.items() if USE in buffers}
