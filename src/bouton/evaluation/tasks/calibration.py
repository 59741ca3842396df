"""calibration: does the model's confidence in its first choice tell how often it is right?

Confidence is the largest probability of the next-token distribution. Expected calibration error is the mean distance of
confidence and accuracy over bins, weighted by their tokens: equally wide bins, or bins that hold equally many tokens
(adaptive), which neither leaves bins empty nor puts most tokens into one. Both are biased upwards where bins are small.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from bouton.data.packing import IGNORED
from bouton.evaluation.base import Result, Row, Task
from bouton.evaluation.intervals import bootstrap, ratio, share
from bouton.evaluation.options import Params, integer
from bouton.evaluation.registry import register
from bouton.evaluation.subject import Subject

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[np.float64]


@dataclass(frozen=True)
class CalibrationOptions(Params):
    bins: int = integer(15, "bins of confidence", low=2)
    resamples: int = integer(1000, "samples of the bootstrap over validation rows", low=100)


@register
class Calibration(Task):
    name = "calibration"
    summary = "expected calibration error, equally wide and equally full bins; Brier score; reliability diagram"
    source = "Guo et al. 2017 (arXiv 1706.04599); adaptive bins: Nixon et al. 2019 (arXiv 1904.01685)"
    Options = CalibrationOptions
    headline: ClassVar = ("ece", "adaptive_ece", "overconfidence", "brier")

    def measure(self, subject: Subject, options: CalibrationOptions) -> Result:
        row, confidence, correct, brier = _predictions(subject)
        result = Result()
        wide = np.linspace(0, 1, options.bins + 1)
        full = np.quantile(confidence, np.linspace(0, 1, options.bins + 1))
        for name, edges in (("ece", wide), ("adaptive_ece", full)):
            sums = bin_sums(row, confidence, correct, edges)
            flat = sums.reshape(len(sums), -1)
            result.put(name, bootstrap(flat, _ece, resamples=options.resamples))
            result.tables[name.replace("ece", "bins")] = _table(sums.sum(0), edges)
        count = np.bincount(row)
        result.put("overconfidence", ratio(np.bincount(row, confidence - correct), count))
        result.put("confidence", ratio(np.bincount(row, confidence), count))
        result.put("accuracy", share(np.bincount(row, correct), count))
        result.put("brier", ratio(np.bincount(row, brier), count))
        result.numbers["tokens"] = len(row)
        result.figures["reliability"] = _draw(result.tables["bins"], result.tables["adaptive_bins"], result.numbers)
        return result


def _predictions(subject: Subject) -> tuple[NDArray[np.int64], Array, Array, Array]:
    """For each target token: number of its row, confidence, whether the first choice is right, Brier score."""
    parts, seen = [], 0
    for batch in subject.batches(subject.validation_rows, "calibration"):
        targets = batch["targets"]
        valid = targets != IGNORED
        with subject.computing():
            logits, _ = subject.model(batch["tokens"], starts=batch["starts"])
            p = torch.softmax(logits.float(), -1)
            confidence, first = p.max(-1)
            # sum over classes of (p - onehot)^2
            brier = p.square().sum(-1) - 2 * p.gather(-1, targets.clamp_min(0)[..., None])[..., 0] + 1
            number = torch.arange(seen, seen + len(targets), device=subject.device)[:, None].expand_as(targets)
            columns = (number, confidence, first == targets, brier)
            parts.append(torch.stack([column[valid].double() for column in columns]).cpu())
        seen += len(targets)
    row, confidence, correct, brier = torch.cat(parts, 1).numpy()
    return row.astype(np.int64), confidence, correct, brier


def bin_sums(row: NDArray[np.int64], confidence: Array, correct: Array, edges: Array) -> Array:
    """(rows, bins, 3): tokens, summed confidence and right answers of each row in each bin."""
    bins = len(edges) - 1
    index = np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, bins - 1)
    rows = int(row.max()) + 1
    sums = [
        np.bincount(row * bins + index, weights, rows * bins)
        for weights in (np.ones_like(correct), confidence, correct)
    ]
    return np.stack(sums, -1).astype(np.float64).reshape(rows, bins, 3)


def _ece(flat: Array) -> Array:
    """(m, bins * 3) sums -> (m,) expected calibration errors."""
    count, confidence, correct = np.moveaxis(flat.reshape(len(flat), -1, 3), -1, 0)
    error: Array = np.abs(confidence - correct).sum(1) / count.sum(1)
    return error


def _table(sums: Array, edges: Array) -> list[Row]:
    rows: list[Row] = []
    for (count, confidence, correct), low, high in zip(sums, edges[:-1], edges[1:], strict=True):
        if count:
            p = correct / count
            rows.append(
                {"low": low, "high": high, "tokens": count, "confidence": confidence / count, "accuracy": p,
                 "accuracy_se": np.sqrt(p * (1 - p) / count)}
            )  # fmt: skip
    return rows


def _draw(wide: list[Row], full: list[Row], numbers: dict[str, float]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.8), layout="constrained")
    panels = (("equally wide bins", wide, "ece"), ("equally full bins", full, "adaptive_ece"))
    for axes, (title, table, name) in zip(figure.subplots(1, 2), panels, strict=True):
        x = [r["confidence"] for r in table]
        y = [r["accuracy"] for r in table]
        plot: Any = axes
        plot.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
        plot.vlines(x, np.minimum(x, y), np.maximum(x, y), color="C3", alpha=0.4, linewidth=3)
        plot.errorbar(x, y, [1.96 * r["accuracy_se"] for r in table], fmt="o-", markersize=3, linewidth=1)
        plot.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1), aspect="equal")
        plot.set_title(f"{title}: error {numbers[name]:.4f}", fontsize=10)
    return figure
