"""The figures of a report: learning curves, forest, Pareto, synergies. Each takes a study and returns a figure."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from scipy import stats

from bouton.evidence.frame import FINISHED, curves
from bouton.evidence.prices import CURRENCIES
from bouton.evidence.statistics import HELPS, HURTS, SAME, Comparison, pair_arms
from bouton.evidence.study import Study
from bouton.files import write_atomically

# Okabe and Ito's colours, which the colour-blind can tell apart; the baseline is dark grey.
_COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#8C6D31",
    "#6A51A3",
    "#A6761D",
    "#117733",
)
_BASELINE, _MUTED = "#3A3A3A", "#9A9A9A"
_VERDICTS = {HELPS: "#009E73", HURTS: "#D55E00", SAME: "#3A3A3A"}
_STYLE = {"linewidth": 1.6}


def draw_all(study: Study, folder: Path) -> dict[str, Path]:
    """Draw every figure that the study has data for into ``folder``; name -> PNG."""
    made = {
        "curves": learning_curves(study),
        "forest": forest(study),
        "pareto": pareto(study),
        "synergy": synergy(study),
    }
    paths = {}
    for name, figure in made.items():
        path = folder / f"{name}.png"
        if figure is None:
            path.unlink(missing_ok=True)  # of an earlier report
            continue
        FigureCanvasAgg(figure)
        write_atomically(path, lambda file, figure=figure: figure.savefig(file, format="png", dpi=160))  # type: ignore[misc]
        paths[name] = path
    return paths


def learning_curves(study: Study) -> Figure | None:
    """Metric over tokens, mean and 95 % band over seeds; beside it the paired difference to the baseline."""
    column = study.measure.curve
    if column is None:
        return None
    finished = study.frame[(study.frame["status"] == FINISHED) & study.frame["control"].isna()]
    lines = curves(finished)
    if column not in lines or lines.empty:
        return None
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    colours = _colours(study)
    for arm in dict.fromkeys(finished["arm"]):
        _band(left, _by_tokens(lines, arm, column), colours[arm], arm)
    for arm, base in study.baseline.items():
        difference = _by_tokens(lines, arm, column) - _by_tokens(lines, base, column)
        _band(right, difference.dropna(how="all").dropna(axis=1, how="all"), colours[arm], arm)
    right.axhline(0, color=_BASELINE, linewidth=1)
    _focus(left, lines, column)
    left.set(xlabel="training tokens", ylabel=f"{study.measure.title} ({study.measure.unit})")
    left.set_title("learning curves", loc="left", fontsize=11)
    right.set(xlabel="training tokens", ylabel=f"difference to the baseline ({study.measure.unit})")
    right.set_title(f"paired difference: {_better(study)}", loc="left", fontsize=11)
    for axes in (left, right):
        axes.xaxis.set_major_formatter(lambda x, _: _si(x))
        _clean(axes)
    _legend(figure, left)
    return figure


def forest(study: Study) -> Figure | None:
    """Difference to the baseline with its 95 % interval, at equal tokens, FLOPs, wall-clock and parameters."""
    arms = list(study.prices)
    if not arms:
        return None
    shown = [c for c in CURRENCIES if any(study.prices[arm][c].comparison is not None for arm in arms)]
    figure = Figure(figsize=(1.6 + 2.7 * len(shown), 1.5 + 0.42 * len(arms)), layout="constrained")
    panels = figure.subplots(1, len(shown), sharey=True, sharex=True, squeeze=False)[0]
    for axes, currency in zip(panels, shown, strict=True):
        axes.axvspan(-study.measure.interest, study.measure.interest, color="#EDEDED", zorder=0)
        axes.axvline(0, color=_BASELINE, linewidth=1)
        for row, arm in enumerate(arms):
            found = study.prices[arm][currency].comparison
            if found is None or not found.n:
                axes.annotate("not run", (0, row), color=_MUTED, fontsize=8, ha="center", va="center")
                continue
            _interval(axes, found, row)
        axes.set_title(f"equal {CURRENCIES[currency]}", fontsize=10)
        _clean(axes)
        axes.grid(axis="y", visible=False)
    panels[0].set_yticks(range(len(arms)), [_wrapped(arm) for arm in arms])
    panels[0].invert_yaxis()
    _limit(panels[0], study)
    title = f"difference to the baseline in {study.measure.title} ({study.measure.unit}); {_better(study)}"
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    figure.legend(handles=_verdict_handles(study), loc="outside lower center", ncols=5, frameon=False, fontsize=8.5)
    return figure


def pareto(study: Study) -> Figure | None:
    """Paired difference to the baseline against relative cost, with the frontier.

    Grey: the plain body with more steps (joined by a line: an arm below it earns its cost) or more parameters.
    """
    points = [_Point(base, "baseline", 1.0, 1.0, 0.0, 0.0) for base in dict.fromkeys(study.baseline.values())]
    points += [_Point(one.arm, "arm", study.costs[one.arm].flops, study.costs[one.arm].time, one.difference,
                      one.high - one.difference) for one in study.comparisons if one.n]  # fmt: skip
    points += _controls(study)
    panels = [(name, field) for name, field in (("training FLOPs", "flops"), ("training time", "time"))
              if sum(math.isfinite(getattr(point, field)) for point in points) > 1]  # fmt: skip
    if not panels:
        return None
    figure = Figure(figsize=(5.4 * len(panels), 4.8), layout="constrained")
    colours = _colours(study)
    for axes, (name, field) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        here = [point for point in points if math.isfinite(getattr(point, field))]
        frontier = _frontier([(getattr(p, field), p.y) for p in here], study.measure.lower_is_better)
        axes.plot(*zip(*frontier, strict=True), color=_MUTED, linewidth=1, linestyle="--", zorder=1)
        longer = sorted((getattr(p, field), p.y) for p in here if p.kind in ("baseline", "longer"))
        axes.plot(*zip(*longer, strict=True), color="#BDBDBD", linewidth=4, alpha=0.6, zorder=0)
        for point in here:
            grey = point.kind in ("longer", "wider")
            axes.errorbar(getattr(point, field), point.y, yerr=point.half if point.half > 0 else None, capsize=2.5,
                          fmt="s" if grey else "o", markersize=5 if grey else 7, elinewidth=1, label=point.arm,
                          color=_MUTED if grey else colours[point.arm])  # fmt: skip
        axes.axhline(0, color=_BASELINE, linewidth=0.8)
        axes.set(xlabel=f"{name}, baseline = 1", ylabel=f"difference to the baseline ({study.measure.unit})")
        axes.set_title(f"quality against {name}: {_better(study)}", loc="left", fontsize=11)
        axes.margins(x=0.1)
        _clean(axes)
    _legend(figure, figure.axes[0])
    return figure


@dataclass(frozen=True)
class _Point:
    arm: str
    kind: str  # baseline, arm, longer, wider
    flops: float
    time: float
    y: float
    half: float  # of the 95 % interval


def _controls(study: Study) -> list[_Point]:
    """The baseline's other budgets. A longer run is placed at the baseline's own speed, without the machine's mood."""
    found = []
    for row in study.frame[study.frame["control"].notna()].drop_duplicates("arm").itertuples():
        arm, base = str(row.arm), str(row.of)
        one = pair_arms(study.frame, study.measure, arm, base)
        if not one.n:
            continue
        tokens = study.frame.groupby("arm")["tokens"].mean()
        longer, cost = float(tokens[arm] / tokens[base]), study.costs[arm]
        wider = row.control == "params"
        half = 0.0 if math.isnan(one.high) else one.high - one.difference
        found.append(_Point(arm, "wider" if wider else "longer", cost.flops * longer,
                            cost.time if wider else longer, one.difference, half))  # fmt: skip
    return found


def synergy(study: Study) -> Figure | None:
    """Pairs: single effects on the diagonal, joint effect minus their sum elsewhere, with 95 % intervals."""
    if not study.synergies:
        return None
    names = sorted({name for found in study.synergies for name in (found.first, found.second)})
    singles = {one.arm: one for one in study.comparisons}
    values = np.full((len(names), len(names)), math.nan)
    cells: dict[tuple[int, int], tuple[Comparison, bool]] = {}
    for i, name in enumerate(names):
        if name in singles:
            values[i, i], cells[i, i] = singles[name].difference, (singles[name], True)
    for found in study.synergies:
        i, j = sorted((names.index(found.first), names.index(found.second)))
        values[j, i], cells[j, i] = found.comparison.difference, (found.comparison, False)
    largest = max(float(np.nanmax(np.abs(values))), 1e-12)
    size = max(4.8, 1.35 * len(names) + 1.6)
    figure = Figure(figsize=(size + 1, size * 0.86), layout="constrained")
    axes: Any = figure.add_subplot()
    colours = "BrBG_r" if study.measure.lower_is_better else "BrBG"  # green is better
    image = axes.imshow(values, cmap=colours, norm=TwoSlopeNorm(0, -largest * 1.6, largest * 1.6))
    for (row, column), (one, alone) in cells.items():
        weight = "bold" if one.verdict in (HELPS, HURTS) else "normal"
        text = f"{'alone' if alone else 'synergy'}\n{one.difference:+.4f}\n[{one.low:+.3f}, {one.high:+.3f}]"
        axes.annotate(text, (column, row), ha="center", va="center", fontsize=8, fontweight=weight)
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.set_yticks(range(len(names)), names)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_title("joint effect minus the sum of the single ones", loc="left", fontsize=11)
    bar = figure.colorbar(image, ax=axes, shrink=0.8)
    bar.set_label(f"{study.measure.unit}; {_better(study)}", fontsize=9)
    return figure


def _by_tokens(lines: pd.DataFrame, arm: str, column: str) -> pd.DataFrame:
    """tokens x seed; of runs that were repeated the last one counts."""
    own = lines[(lines["arm"] == arm) & (lines["step"] > 0)]
    return own.pivot_table(index="tokens", columns="seed", values=column, aggfunc="last")


def _band(axes: Any, values: pd.DataFrame, colour: str, label: str) -> None:
    if values.empty:
        return
    n, mean = values.count(axis=1), values.mean(axis=1)
    half = stats.t.ppf(0.975, np.maximum(n - 1, 1)) * values.std(axis=1, ddof=1) / np.sqrt(n)
    axes.plot(values.index, mean, color=colour, label=label, **_STYLE)
    axes.fill_between(values.index, mean - half, mean + half, color=colour, alpha=0.16, linewidth=0)


def _focus(axes: Any, lines: pd.DataFrame, column: str) -> None:
    """Leave the steep beginning out of the picture: it would flatten everything that is compared."""
    shown = lines.loc[lines["tokens"] >= 0.2 * lines["tokens"].max(), column]
    margin = 0.08 * float(shown.max() - shown.min())
    if len(lines) > len(shown) and margin > 0:
        axes.set_ylim(float(shown.min()) - margin, float(shown.max()) + margin)


def _interval(axes: Any, one: Comparison, row: int) -> None:
    colour = _VERDICTS.get(one.verdict, _MUTED)
    if math.isfinite(one.low):
        axes.plot([one.low, one.high], [row, row], color=colour, linewidth=2, solid_capstyle="round")
    axes.plot(one.difference, row, "o", color=colour, markersize=6.5)


def _limit(axes: Any, study: Study) -> None:
    """Keep a few very wide intervals (two seeds) from squeezing all others."""
    found = [p.comparison for e in study.prices.values() for p in e.values() if p.comparison is not None]
    found = [one for one in found if one.n]
    if not found:
        return
    centre = max([abs(one.difference) for one in found] + [study.measure.interest])
    ends = [max(abs(one.low), abs(one.high)) for one in found if math.isfinite(one.low)]
    reach = min(max([*ends, centre]), max(5 * centre, 1.5 * float(np.median(ends)) if ends else 0.0))
    low = min(
        [-study.measure.interest]
        + [max(-reach, one.low if math.isfinite(one.low) else one.difference) for one in found]
    )
    high = max(
        [study.measure.interest]
        + [min(reach, one.high if math.isfinite(one.high) else one.difference) for one in found]
    )
    margin = 0.06 * (high - low)
    axes.set_xlim(low - margin, high + margin)


def _frontier(points: Sequence[tuple[float, float]], lower_is_better: bool) -> list[tuple[float, float]]:
    """The points that no other beats in both cost and quality, by cost."""
    sign = 1.0 if lower_is_better else -1.0
    kept: list[tuple[float, float]] = []
    for x, y in sorted((p for p in points if math.isfinite(p[0])), key=lambda p: (p[0], sign * p[1])):
        if not kept or sign * y < sign * kept[-1][1]:
            kept.append((x, y))
    return kept


def _colours(study: Study) -> dict[str, str]:
    bases = set(study.baseline.values())
    others = [arm for arm in study.arms if arm not in bases]
    colours = {arm: _COLOURS[index % len(_COLOURS)] for index, arm in enumerate(others)}
    return {arm: colours.get(arm, _BASELINE) for arm in study.frame["arm"].unique()}


def _verdict_handles(study: Study) -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    marks = [Line2D([], [], color=colour, marker="o", label=verdict) for verdict, colour in _VERDICTS.items()]
    marks.append(Line2D([], [], color=_MUTED, marker="o", label="too few seeds"))
    bound = f"within ±{study.measure.interest:g}: too small to matter"
    return [*marks, Patch(color="#EDEDED", label=bound)]


def _legend(figure: Figure, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    labels = [_wrapped(label) for label in labels]
    figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(labels)), frameon=False, fontsize=9)


def _wrapped(label: str) -> str:
    """A long sum of mechanisms over several lines."""
    return "\n".join(textwrap.wrap(label.replace("+", "+ "), 26, break_long_words=False)).replace("+ ", "+")


def _better(study: Study) -> str:
    return "below 0 is better" if study.measure.lower_is_better else "above 0 is better"


def _clean(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.7)
    axes.tick_params(labelsize=9)


def _si(x: float) -> str:
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(x) >= unit:
            return f"{x / unit:g}{name}"
    return f"{x:g}"
