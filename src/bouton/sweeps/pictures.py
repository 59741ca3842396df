"""The pictures of a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bouton.files import write_atomically

_STYLE = {"finished": ("o", "#4878a8"), "stopped": ("v", "#b0b0b0")}


def draw_convergence(generations: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Scores, best so far and step size over generations; failures at the top edge, a line where a phase begins.

    Args:
        generations: their records in the journal.
        path: of the PNG.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    upper: Any
    lower: Any
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    for status, (marker, colour) in _STYLE.items():
        points = [
            (step, score)
            for step, record in enumerate(generations, 1)
            for score, state in zip(record["scores"], record["statuses"], strict=True)
            if score is not None and state == status
        ]
        if points:
            upper.scatter(*zip(*points, strict=True), s=14, marker=marker, color=colour, alpha=0.6, label=status)
    steps = range(1, len(generations) + 1)
    best = [record["best"]["score"] for record in generations]
    upper.step(steps, [np.nan if b is None else b for b in best], where="post", color="#c0392b", label="best so far")
    failed = [(step, record["statuses"].count("failed")) for step, record in enumerate(generations, 1)]
    for step, count in failed:
        if count:
            upper.annotate(f"{count}x", (step, 0.97), xycoords=("data", "axes fraction"), ha="center", fontsize=7)
    if any(count for _, count in failed):
        upper.plot([], [], " ", label="n x: failed trials")
    for step, record in enumerate(generations, 1):
        if record["generation"] == 0:
            upper.axvline(step - 0.5, color="0.8", linewidth=0.8)
            upper.annotate(record["phase"], (step - 0.45, 0.02), xycoords=("data", "axes fraction"), fontsize=8)
    upper.set_ylabel("score")
    upper.legend(fontsize=8, frameon=False)
    upper.grid(alpha=0.25)
    lower.semilogy(steps, [record["sigma"] for record in generations], color="0.3")
    lower.set_ylabel("sigma")
    lower.set_xlabel("generation")
    lower.grid(alpha=0.25)
    FigureCanvasAgg(figure)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=120))


def covariance_image(covariance: Any, labels: Sequence[str], title: str) -> Any:
    """(dimension, dimension) covariance in units of the search cube -> (height, width, 3) uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    size = 2.5 + 0.32 * len(labels)
    figure = Figure(figsize=(size + 1.5, size), layout="constrained")
    axes: Any = figure.add_subplot()
    limit = float(np.abs(covariance).max()) or 1.0
    shown = axes.imshow(covariance, cmap="RdBu_r", vmin=-limit, vmax=limit)
    short = [label.rpartition(".")[2] for label in labels]
    axes.set_xticks(range(len(short)), short, rotation=90, fontsize=7)
    axes.set_yticks(range(len(short)), short, fontsize=7)
    axes.set_title(f"covariance: {title}", fontsize=9)
    figure.colorbar(shown, shrink=0.8)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
