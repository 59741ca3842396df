"""Spreading of activation from seeds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from bouton.substrate.arrays import Floats, Ids, Nodes, to_count, to_floats, to_ids
from bouton.substrate.graph import Graph

LEAST_ACTIVE = 16
MOST_LEVEL = 1e18


@dataclass(frozen=True)
class Activation:
    """Active nodes.

    Attributes:
        ids, levels: (active,), ascending ids.
        steps: how many were made.
        converged: the last one changed less than ``epsilon``, or nothing is active.
        edges: how many were passed.
        history: the seeds, then the active nodes after each step, if they were recorded.
        scale: what the sums were multiplied by (divisive normalisation).
        goals: nodes that were set from outside.
        saturation: largest level.
    """

    ids: Ids
    levels: Floats
    steps: int = 0
    converged: bool = False
    edges: int = 0
    history: tuple[Activation, ...] = field(default=(), repr=False)
    scale: float = 1.0
    goals: Ids = field(default_factory=lambda: np.zeros(0, np.uint32), repr=False)
    saturation: float = MOST_LEVEL

    def __len__(self) -> int:
        return len(self.ids)

    def level(self, node: int) -> float:
        """The level of a node; 0 if it is silent."""
        at = int(np.searchsorted(self.ids, node))
        return float(self.levels[at]) if at < len(self.ids) and self.ids[at] == node else 0.0

    def top(self, count: int = 10) -> list[tuple[int, float]]:
        """The highest levels, ties by id."""
        order = np.lexsort((self.ids, -self.levels))[:count]
        return [(int(self.ids[i]), float(self.levels[i])) for i in order]


def spread(
    graph: Graph,
    seeds: Nodes | Activation,
    *,
    levels: ArrayLike = 1.0,
    steps: int = 8,
    sparsity: float = 0.02,
    top_k: int | None = None,
    epsilon: float = 0.0,
    signed: bool = False,
    saturation: float = MOST_LEVEL,
    gain: float | None = None,
    goals: Nodes = (),
    goal_strength: float = 1.0,
    groups: ArrayLike | Literal["kind"] | None = None,
    group_top_k: int = 1,
    working_memory: float | None = None,
    mode: str = "auto",
    threads: int = 1,
    record: bool = False,
) -> Activation:
    """Spread synchronously: ``new(v) = a(v) decay(v) + sum over relations r and sources u of a(u) weight(r) w(u, v)``.

    After each sum nodes below their threshold fall silent, then all but the highest ``top_k``, then all but the best of
    each group; levels are cut at ``saturation``, divided by the total if there is a ``gain``, and goals are set.

    Args:
        seeds: nodes, or what was active before.
        levels: of the seeds, (n,) or one for all; of a node given twice the highest counts.
        sparsity: share of the nodes that stay active, at least 16.
        top_k: how many stay active; replaces the sparsity.
        epsilon: stop when ``|a(t) - a(t-1)|_1 < epsilon |a(t)|_1``.
        signed: negative levels propagate too, and the highest is that of the largest magnitude.
        gain: levels become ``gain a / (1 + |a|_1)``.
        goals: nodes that are kept at ``goal_strength`` throughout.
        groups: (nodes,) the group of each node, 2^32 - 1 for none, or "kind": nodes of a kind are a group;
            ``group_top_k`` of each stay active.
        working_memory: the seeds are joined by the graph's working memory, which then fades by one tick and takes in
            what is active in the end, at this gain (0 to 1).
        mode: "push" along rows, "pull" through the transpose (made at the first use), or "auto": pull where much is
            active and the transpose is there. The results are the same to the last bit.
        threads: 0: one per core; the results are the same to the last bit.
        record: keep the active nodes of every step, which :func:`bouton.substrate.explain` needs.

    Raises:
        ValueError: unknown nodes, or a value out of its range.
    """
    if isinstance(seeds, Activation):
        ids, strengths = seeds.ids, seeds.levels
    else:
        ids = graph.ids(seeds, "seeds")
        strengths = to_floats(levels, len(ids), "levels")
    if working_memory is not None:
        held_ids, held_levels = graph.engine.working()
        ids, strengths = np.concatenate([ids, held_ids]), np.concatenate([strengths, held_levels])
    if top_k is None:
        if not 0 < sparsity <= 1:
            raise ValueError(f"sparsity = {sparsity} must be above 0 and at most 1")
        top_k = max(LEAST_ACTIVE, int(len(graph) * sparsity))
    set_from_outside = graph.ids(goals, "goals")
    how = {
        "steps": to_count(steps, "steps"),
        "k": to_count(top_k, "top_k"),
        "epsilon": epsilon,
        "signed": signed,
        "saturation": saturation,
        "gain": gain,
        "mode": mode,
        "threads": to_count(threads, "threads"),
        "goals": set_from_outside,
        "goal_strength": goal_strength,
        "groups": None if groups is None else to_ids(_groups(graph, groups), "groups"),
        "group_top_k": to_count(group_top_k, "group_top_k"),
        "record": record,
    }
    (ids, strengths, scale), made, converged, edges, steps_made = graph.engine.spread(ids, strengths, how)
    history = tuple(
        Activation(i, x, steps=t, scale=s, goals=set_from_outside, saturation=saturation)
        for t, (i, x, s) in enumerate(steps_made)
    )
    if working_memory is not None:
        graph.engine.tick()
        graph.engine.absorb(ids, strengths, working_memory)
    return Activation(ids, strengths, made, converged, edges, history, scale, set_from_outside, saturation)


def _groups(graph: Graph, groups: ArrayLike | str) -> ArrayLike:
    if isinstance(groups, str):
        if groups != "kind":
            raise ValueError(f"groups = '{groups}' is unknown; known: kind, or an array")
        return graph.node_array("kind")
    return groups


def overlap(a: Activation, b: Activation) -> float:
    """Weighted Jaccard similarity: the sum of the lower levels over that of the higher; 0 if both are silent."""
    ids = np.union1d(a.ids, b.ids)
    x, y = (np.zeros(len(ids)) for _ in range(2))
    x[np.searchsorted(ids, a.ids)] = a.levels
    y[np.searchsorted(ids, b.ids)] = b.levels
    most = np.maximum(x, y).sum()
    return float(np.minimum(x, y).sum() / most) if most > 0 else 0.0
