"""The log of changes of weights."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bouton.substrate.graph import Graph

CHANGE = np.dtype(
    [
        ("step", "u4"),
        ("source", "u4"),
        ("target", "u4"),
        ("relation", "u2"),
        ("rule", "u2"),
        ("old", "f4"),
        ("new", "f4"),
        ("reward", "f4"),
        ("number", "u4"),
    ]
)
"""One change: the clock, the edge, which of :data:`RULES`, the weights, the reward, and its place among all changes."""
RULES = ("delta", "oja", "reinforce", "surprise", "perceptron")


def record_changes(graph: Graph, capacity: int, *, every: int = 1) -> None:
    """Keep the last ``capacity`` changes, or every n-th change; 0: none, which is how a graph begins and costs nothing.

    What was kept before is dropped.

    Raises:
        ValueError: ``every`` is not at least 1.
    """
    graph.engine.set_trace(capacity, every)


def changes(graph: Graph) -> NDArray[np.void]:
    """The kept changes, oldest first: (changes,) of dtype :data:`CHANGE`; empty if none are recorded."""
    found = graph.engine.trace()
    if found is None:
        return np.zeros(0, CHANGE)
    return found[0].view(CHANGE).reshape(-1)
