"""Local rules that change edges: three factors, growth and pruning, the modulator."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

from bouton.errors import suggest
from bouton.substrate.arrays import Floats, Ids, Nodes, to_count
from bouton.substrate.graph import Graph
from bouton.substrate.spreading import Activation

Levels: TypeAlias = "Activation | Nodes | tuple[Nodes, Floats]"
"""Active nodes: an activation, nodes at level 1, or nodes and their levels."""

RULES = {"delta": "delta", "eligibility": "eligible", "hebb": "delta", "oja": "oja"}
NO_LIMIT = 2**40


def learn(
    graph: Graph,
    relation: str,
    pre: Levels,
    post: Levels | None = None,
    *,
    rule: str = "hebb",
    eta: float = 0.05,
    reward: float = 1.0,
    clip: tuple[float, float] = (-1.0, 1.0),
    create: float | None = None,
    budget: int | None = None,
) -> int:
    """Change the edges from ``pre`` to ``post`` by ``dw = eta (1 + m) reward x y``, m being the modulator.

    Args:
        pre: what was active before an edge, x.
        post: what was active behind it, or its error, y; None: the same as ``pre``.
        rule: "hebb" and "delta": the product; "oja": ``y (x - y w)`` in place of ``x y``, which bounds weights (E. Oja
            1982, J. Math. Biol. 15:267; here only edges of active nodes change); "eligibility": x y is added to the
            edge's eligibility, which waits for :func:`reinforce`.
        reward: third factor; negative weakens.
        clip: least and greatest weight.
        create: pairs of different nodes without an edge get one where ``|dw|`` is at least this.
        budget: most new edges, the largest changes first.

    Returns:
        How many edges were made.

    Raises:
        ValueError: an unknown rule or node, or a value out of its range.
    """
    if rule not in RULES:
        raise ValueError(f"rule = '{rule}' is unknown: {suggest(rule, RULES)}")
    before = levels_of(graph, pre, "pre")
    behind = before if post is None else levels_of(graph, post, "post")
    number = graph.relation(relation) if create is not None else graph.known_relation(relation)
    most = NO_LIMIT if budget is None else to_count(budget, "budget")
    return graph.engine.learn(number, before, behind, RULES[rule], eta, reward, clip, create, most)


def reinforce(
    graph: Graph, relation: str, reward: float, *, eta: float = 0.05, clip: tuple[float, float] = (-1.0, 1.0)
) -> None:
    """The reward that eligible edges waited for: ``dw = eta (1 + m) reward e``."""
    graph.engine.reinforce(graph.known_relation(relation), reward, eta, clip)


def fade(graph: Graph, keep: float) -> None:
    """Multiply all eligibilities by ``keep`` (0 to 1), in no time."""
    graph.engine.fade(keep)


def forget(graph: Graph, relation: str, keep: float = 0.999) -> None:
    """Multiply all weights of a relation by ``keep`` (0 to 1)."""
    graph.engine.forget(graph.known_relation(relation), keep)


def settle(graph: Graph, rate: float, *, eta: float = 0.1) -> None:
    """Homeostasis: ``threshold += eta (share of steps in which the node was active - rate)``, from 0 on.

    The steps are those since the last call; ``fired`` begins at 0 again.
    """
    graph.engine.settle(rate, eta)


def prune(graph: Graph, relation: str, below: float, *, idle: int | None = None, budget: int | None = None) -> int:
    """Remove the weakest edges: ``|weight| < below``.

    Args:
        idle: only edges from nodes that were not active in so many steps.
        budget: most edges that are removed, the weakest first.

    Returns:
        How many were removed.
    """
    most = NO_LIMIT if budget is None else to_count(budget, "budget")
    return graph.engine.prune(graph.known_relation(relation), below, idle, most)


def modulate(graph: Graph, reward: float) -> float:
    """Move the modulator towards a reward: ``m = clip(0.95 m + 0.3 reward, -0.5, 1)``; returns m.

    The rate of every rule is multiplied by ``1 + m``.
    """
    return graph.engine.modulate(reward)


def levels_of(graph: Graph, active: Levels, name: str) -> tuple[Ids, Floats]:
    """Ids and levels of active nodes."""
    if isinstance(active, Activation):
        return active.ids, active.levels
    if isinstance(active, tuple) and len(active) == 2 and not isinstance(active[1], str | int):
        return graph.ids(active[0], name), np.ascontiguousarray(active[1], np.float32)
    ids = graph.ids(active, name)
    return ids, np.ones(len(ids), np.float32)
