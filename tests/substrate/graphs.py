"""Graphs that several tests use."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bouton.substrate import Graph


@dataclass
class Pair:
    """A graph, and the same as matrices in float64."""

    graph: Graph
    relations: list[tuple[float, NDArray[np.float64]]]
    decay: NDArray[np.float64]
    threshold: NDArray[np.float64]


def random_pair(nodes: int = 60, degree: int = 8, seed: int = 0) -> Pair:
    """Two relations of random signed edges."""
    rng = np.random.default_rng(seed)
    graph = Graph(nodes)
    relations = []
    for name, weight in (("a", 0.5), ("b", -0.75)):
        sources = np.repeat(np.arange(nodes), degree)
        targets = np.concatenate([rng.choice(nodes, degree, replace=False) for _ in range(nodes)])
        weights = rng.normal(size=len(sources)).astype(np.float32)
        graph.relation(name, weight)
        graph.connect(name, sources, targets, weights)
        matrix = np.zeros((nodes, nodes))
        matrix[sources, targets] = weights
        relations.append((weight, matrix))
    decay = rng.random(nodes).astype(np.float32)
    threshold = (0.1 * rng.random(nodes)).astype(np.float32)
    graph.set(np.arange(nodes), decay=decay, threshold=threshold)
    return Pair(graph, relations, decay.astype(np.float64), threshold.astype(np.float64))
