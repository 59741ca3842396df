"""Why a node is active: the contributions to its level, and the ways on which they came from the seeds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bouton.substrate.arrays import NONE, Floats, Ids
from bouton.substrate.graph import Graph
from bouton.substrate.spreading import Activation


@dataclass(frozen=True)
class Explanation:
    """The level of one node after one step.

    Attributes:
        target, step: which node, after which step.
        sources: (terms,) where the contributions came from.
        relations: (terms,) number of the relation; 2^32 - 1 is the node's own level of the step before, decayed.
        weights, contributions: (terms,) in the order in which they were added.
        total: the sum in float32, term by term from zero.
        level: the node's level, which is ``min(total, saturation) * scale`` to the last bit; 0 if it fell silent.
        goal: the level was set from outside instead.
    """

    target: int
    step: int
    sources: Ids
    relations: Ids
    weights: Floats
    contributions: Floats
    total: float
    level: float
    goal: bool
    text: str

    def __str__(self) -> str:
        return self.text


def explain(graph: Graph, active: Activation, target: str | int, *, step: int | None = None) -> Explanation:
    """The contributions to a node's level.

    Args:
        active: a recorded spread (``record=True``) on the graph as it is now.
        target: any node, active or not.
        step: after which step, 1 to ``active.steps``; None: the last.

    Raises:
        ValueError: nothing was recorded, no such step or node, or the graph was changed since.
    """
    node = int(graph.ids(target, "target")[0])
    if not active.history:
        raise ValueError("active has no history: spread with record=True")
    number = active.steps if step is None else step
    if not 1 <= number <= active.steps:
        raise ValueError(f"step = {number} does not exist: {active.steps} were made")
    before, after = active.history[number - 1], active.history[number]
    sources, relations, weights, contributions = graph.engine.terms(before.ids, before.levels, node)
    total = add(contributions)
    level, goal = after.level(node), bool(np.isin(node, active.goals))
    most = np.float32(active.saturation)
    expected = np.float32(np.clip(total, -most, most)) * np.float32(after.scale)
    if not goal and level != 0.0 and float(expected) != level:
        raise ValueError("the graph was changed since this was active: spread again, then explain")
    names = [*graph.relations]
    lines = [f"{graph.label(node)} = {level:g} after step {number}" + (" (a goal)" if goal else "")]
    for i in np.argsort(-np.abs(contributions), kind="stable")[:10]:
        through = "itself" if relations[i] == NONE else f"{graph.label(int(sources[i]))} {names[relations[i]]}"
        lines.append(f"  {contributions[i]:+.6g}  {through} ({weights[i]:g})")
    if len(contributions) > 10:
        lines.append(f"  and {len(contributions) - 10} more")
    text = "\n".join(lines)
    return Explanation(node, number, sources, relations, weights, contributions, float(total), level, goal, text)


def add(contributions: Floats) -> np.float32:
    """The sum as the engine makes it: term by term, in float32."""
    total = np.float32(0.0)
    for x in contributions:
        total = np.float32(total + x)
    return total


def paths(
    graph: Graph, active: Activation, target: str | int, *, count: int = 5, width: int = 16
) -> list[tuple[float, list[tuple[int, int]]]]:
    """The ways on which most of a node's level came from the seeds.

    Args:
        count: how many, the strongest first.
        width: how many unfinished ways are followed at a time (a beam).

    Returns:
        For each way its strength, the product of the shares ``contribution / sum of magnitudes``, and its nodes with
        the relation that led to each (2^32 - 1: itself), from the seed to the target.
    """
    node = int(graph.ids(target, "target")[0])
    beam: list[tuple[float, list[tuple[int, int]]]] = [(1.0, [(node, NONE)])]
    for step in range(active.steps, 0, -1):
        longer = []
        for strength, way in beam:
            found = explain(graph, active, way[0][0], step=step)
            whole = float(np.abs(found.contributions).sum())
            if whole == 0:
                continue
            for i in np.argsort(-np.abs(found.contributions), kind="stable")[:width]:
                share = float(found.contributions[i]) / whole
                (first, _), rest = way[0], way[1:]
                stretched = [(int(found.sources[i]), NONE), (first, int(found.relations[i])), *rest]
                longer.append((strength * share, stretched))
        beam = sorted(longer, key=lambda x: (-abs(x[0]), x[1]))[:width]
    return beam[:count]
