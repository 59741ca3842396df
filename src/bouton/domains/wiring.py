"""Edges from every node of one range to every node of another."""

from __future__ import annotations

import numpy as np

from bouton.substrate import Graph


def connect_all(graph: Graph, relation: str, sources: range, targets: range, weight: float = 0.0) -> int:
    """Returns how many edges were made."""
    before = np.repeat(np.arange(sources.start, sources.stop), len(targets))
    behind = np.tile(np.arange(targets.start, targets.stop), len(sources))
    return graph.connect(relation, before, behind, weight)
