"""A picture of why a node is active: nodes in columns by step, lines between them as wide as what they contribute."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from bouton.substrate.arrays import NONE
from bouton.substrate.explaining import Explanation
from bouton.substrate.graph import Graph

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Paths: TypeAlias = Sequence[tuple[float, list[tuple[int, int]]]]
RAISES, LOWERS = "tab:blue", "tab:red"
WIDEST = 6.0
THINNEST = 0.3


class Edge(NamedTuple):
    """A line of the picture: from a node after ``step`` to one after the next step."""

    step: int
    source: int
    target: int
    relation: int
    amount: float


def draw(
    graph: Graph, found: Explanation | Paths, *, most: int = 12, name: Callable[[int], str] | None = None
) -> Figure:
    """Draw what :func:`bouton.substrate.explain` or :func:`bouton.substrate.paths` found.

    The width of a line is proportional to the magnitude of its contribution, down to a hairline: blue raises the
    target, red lowers it, dashes are the node's own level of the step before. Of paths the contribution is their
    strength, and lines that several share have the sum. The id (``gid``) of each line is ``step source relation
    target`` in numbers.

    Args:
        most: how many contributions or paths are drawn, the largest first; the title says how many are not.
        name: of each node; None: its label in the graph.

    Raises:
        ValueError: there is nothing to draw.
    """
    from matplotlib.figure import Figure

    if most < 1:
        raise ValueError(f"most = {most} must be at least 1")
    one = isinstance(found, Explanation)
    edges = _of_explanation(found, most) if isinstance(found, Explanation) else _of_paths(found, most)
    if not edges:
        raise ValueError("found holds no contributions: nothing reaches the target")
    called = name or graph.label
    places = _places(edges, one)
    rows = max(sum(1 for s, _ in places if s == step) for step in {s for s, _ in places})
    columns = len({step for step, _ in places})
    figure = Figure(figsize=(1.6 + 2.4 * columns, 1.1 + 0.38 * max(rows, 3)), layout="constrained")
    axes = figure.subplots()
    largest = max(abs(edge.amount) for edge in edges)
    relations = list(graph.relations)
    between: Counter[tuple[int, int, int]] = Counter()
    for edge in edges:
        ends = (edge.step, edge.source, edge.target)
        _line(axes, edge, places, largest, _what(edge, relations) if one else f"{edge.amount:.2g}", between[ends])
        between[ends] += 1
    first, last = min(step for step, _ in places), max(step for step, _ in places)
    for (step, node), height in places.items():
        side = "right" if step == first else "left" if step == last else "center"
        axes.text(step, height, called(node), ha=side, va="center", fontsize=9, zorder=3, bbox=_BOX)
    axes.set_xticks(
        range(first, last + 1), ["seeds" if step == 0 else f"step {step}" for step in range(first, last + 1)]
    )
    axes.set_yticks([])
    axes.margins(x=0.35 / (columns - 1), y=0.12)
    axes.spines[["left", "right", "top"]].set_visible(False)
    axes.set_title(_title(found, len(edges), most, called), fontsize=10)
    return figure


_BOX = {"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "0.7", "linewidth": 0.6}


def _of_explanation(found: Explanation, most: int) -> list[Edge]:
    order = np.argsort(-np.abs(found.contributions), kind="stable")[:most]
    terms = zip(found.sources[order], found.relations[order], found.contributions[order], strict=True)
    return [Edge(found.step - 1, int(s), found.target, int(r), float(x)) for s, r, x in terms]


def _of_paths(found: Paths, most: int) -> list[Edge]:
    amounts: dict[tuple[int, int, int, int], float] = {}
    for strength, way in sorted(found, key=lambda one: -abs(one[0]))[:most]:
        for step in range(len(way) - 1):
            (source, _), (target, relation) = way[step], way[step + 1]
            key = (step, source, target, relation)
            amounts[key] = amounts.get(key, 0.0) + strength
    return [Edge(*key, amount) for key, amount in amounts.items()]


def _places(edges: Sequence[Edge], one: bool) -> dict[tuple[int, int], float]:
    """Height of each (step, node), those with the largest amounts on top, every column around zero."""
    amounts: dict[tuple[int, int], float] = {}
    for edge in edges:
        ends = {(edge.step, edge.source), (edge.step + 1, edge.target)}
        for end in ends:
            # The sign orders the terms of one node: what raises it stands above what lowers it.
            amounts[end] = amounts.get(end, 0.0) + (edge.amount if one else abs(edge.amount))
    places = {}
    for step in {step for step, _ in amounts}:
        column = sorted((end for end in amounts if end[0] == step), key=lambda end: (-amounts[end], end[1]))
        places.update({end: (len(column) - 1) / 2 - i for i, end in enumerate(column)})
    return places


def _line(axes: Any, edge: Edge, places: dict[tuple[int, int], float], largest: float, text: str, before: int) -> None:
    """``before``: lines between the same two nodes so far; each starts below them, so that it hides none."""
    start, end = places[edge.step, edge.source] - 0.3 * before, places[edge.step + 1, edge.target]
    axes.plot(
        [edge.step, edge.step + 1],
        [start, end],
        "--" if edge.relation == NONE else "-",
        lw=max(WIDEST * abs(edge.amount) / largest, THINNEST),
        color=RAISES if edge.amount >= 0 else LOWERS,
        alpha=0.7,
        gid=f"{edge.step} {edge.source} {edge.relation} {edge.target}",
    )
    at = 0.3  # nearer to the source, where lines to one target do not meet yet
    axes.text(edge.step + at, start + at * (end - start), text, fontsize=7, ha="center", va="bottom", zorder=2)


def _what(edge: Edge, relations: Sequence[str]) -> str:
    return f"{edge.amount:+.3g} {'itself' if edge.relation == NONE else relations[edge.relation]}"


def _title(found: Explanation | Paths, edges: int, most: int, called: Callable[[int], str]) -> str:
    if isinstance(found, Explanation):
        hidden = len(found.contributions) - edges
        rest = f", {hidden} smaller ones not drawn" if hidden else ""
        goal = ", a goal" if found.goal else ""
        return f"{called(found.target)} = {found.level:.4g}{goal}: {len(found.contributions)} contributions{rest}"
    hidden = max(0, len(found) - most)
    rest = f", {hidden} weaker ones not drawn" if hidden else ""
    return f"ways to {called(found[0][1][-1][0])}: {min(most, len(found))}{rest}"
