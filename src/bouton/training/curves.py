"""The picture of a run: losses, and the vitals of its mechanisms, over optimizer steps."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

from bouton.files import write_atomically

Series = dict[str, tuple[list[int], list[float]]]
_MAX_PANELS = 7


def read_series(path: Path) -> Series:
    """Column -> (steps, values) of a metrics table; cells that are empty or not finite are left out."""
    series: Series = {}
    if not path.exists():
        return series
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            for name, text in row.items():
                if name != "step" and text and math.isfinite(value := float(text)):
                    steps, values = series.setdefault(name, ([], []))
                    steps.append(int(row["step"]))
                    values.append(value)
    return series


def phase_begins(metrics: Series) -> list[tuple[int, int]]:
    """(optimizer step, phase) of every change of the column ``phase``; none without a curriculum."""
    steps, phases = metrics.get("phase", ([], []))
    places = zip(steps[1:], phases[1:], phases[:-1], strict=True)
    return [(step, int(phase)) for step, phase, before in places if phase != before]


def parted(steps: list[int], values: list[float], places: list[int]) -> tuple[list[int], list[float]]:
    """A curve with gaps (nan) at ``places``."""
    points = sorted([*zip(steps, values, strict=True), *((place, math.nan) for place in places)], key=lambda p: p[0])
    return [step for step, _ in points], [value for _, value in points]


def draw_curves(folder: Path, title: str) -> Path | None:
    """Draw ``curves.png`` from the tables in ``folder``; None if nothing was logged."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    metrics, vitals = read_series(folder / "metrics.csv"), read_series(folder / "vitals.csv")
    losses: Series = {name: metrics[name] for name in ("train/loss", "val/loss", "val/phase_loss") if name in metrics}
    if not losses:
        return None
    mechanisms: dict[str, Series] = {}
    for name, values in vitals.items():
        mechanisms.setdefault(name.partition("/")[0], {})[name.partition("/")[2]] = values
    panels: list[tuple[str, Series]] = [("loss (nats per token)", losses), *list(mechanisms.items())[:_MAX_PANELS]]
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(5.5 * columns, 3.4 * rows), layout="constrained")
    figure.suptitle(title)
    boundaries = phase_begins(metrics)
    for index, (name, series) in enumerate(panels):
        axes: Any = figure.add_subplot(rows, columns, index + 1)
        for label, (steps, points) in series.items():
            few = len(steps) < 30
            if label == "val/phase_loss":  # of other text and lengths in each phase: no line may join them
                steps, points = parted(steps, points, [step for step, _ in boundaries])
            axes.plot(steps, points, label=label, linewidth=1.2, marker="o" if few else None, markersize=3)
        for step, phase in boundaries:
            axes.axvline(step, color="0.6", linewidth=0.8, linestyle="--")
            axes.annotate(f"{phase}", (step, 1.0), (2, -8), ("data", "axes fraction"), "offset points", fontsize=7)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("optimizer step")
        axes.legend(fontsize=8, frameon=False)
        axes.grid(alpha=0.25)
    path = folder / "curves.png"
    FigureCanvasAgg(figure)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=130))
    return path
