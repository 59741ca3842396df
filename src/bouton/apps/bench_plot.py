"""The plot of ``bouton bench``: time ratio to the first peer against T, one panel per pass."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bouton.ops.benchmarks.harness import Result
from bouton.ops.benchmarks.report import baseline

Points = dict[tuple[str, str], list[tuple[int, float]]]  # panel, line -> (T, ratio)


def draw(results: Sequence[Result], path: Path) -> bool:
    """Write the PNG; False where no result has a length, then nothing is written."""
    points = collect(results)
    if not points:
        return False
    from matplotlib.figure import Figure

    panels = sorted({panel for panel, _ in points})
    figure = Figure(figsize=(5.5 * len(panels), 4.2), layout="constrained")
    for ax, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for (of, line), pairs in points.items():
            if of == panel:
                lengths, ratios = zip(*sorted(pairs), strict=True)
                ax.plot(lengths, ratios, marker="o", markersize=3, label=line)
        ax.axhline(1.0, color="grey", linewidth=0.8)
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.set_title(panel, fontsize=9)
        ax.set_xlabel("T")
        ax.set_ylabel("time / time of the peer")
        ax.legend(fontsize=7)
    figure.savefig(path, dpi=120, format="png")
    return True


def collect(results: Sequence[Result]) -> Points:
    """Lines by panel: an execution of an op at the same sizes beside T."""
    points: Points = {}
    for result in results:
        sizes = dict(result["dims"])
        length = sizes.pop("T", None)
        against = baseline(result)
        if length is None or against is None:
            continue
        rest = " ".join(f"{name}={size}" for name, size in sizes.items())
        variant = result["case"].split()[0].strip("(,")
        for step, figures in result["passes"].items():
            for name, figure in figures.items():
                wall: Any = figure["ratios"].get(against, {}).get("wall")
                if wall is not None:
                    label = f"{name} {rest}" if variant.isdigit() else f"{name} {variant} {rest}"
                    points.setdefault((f"{result['op']}, {step}, to {against}", label), []).append(
                        (length, wall["ratio"])
                    )
    return points
