"""A memory of experiences that are lived through again, the important ones more often."""

from __future__ import annotations

from typing import Generic, TypeVar

import numpy as np

from bouton.substrate.graph import Graph

Experience = TypeVar("Experience")


class Replay(Generic[Experience]):
    """The last ``capacity`` experiences with priorities.

    Draws use the random numbers of the graph, so a graph that was saved and opened goes on as it would have.

    Raises:
        ValueError: a capacity below 1.
    """

    def __init__(self, graph: Graph, capacity: int = 1000) -> None:
        if capacity < 1:
            raise ValueError(f"capacity = {capacity} must be at least 1")
        self.graph, self.capacity = graph, capacity
        self._held: list[Experience] = []
        self._priorities: list[float] = []
        self._next = 0

    def __len__(self) -> int:
        return len(self._held)

    def add(self, experience: Experience, priority: float = 1.0) -> None:
        """Remember; the oldest is forgotten where there is no room.

        Raises:
            ValueError: a priority that is no number or negative.
        """
        if not 0 <= priority < float("inf"):
            raise ValueError(f"priority = {priority} must be a number from 0 on")
        if len(self._held) < self.capacity:
            self._held.append(experience)
            self._priorities.append(priority)
        else:
            self._held[self._next], self._priorities[self._next] = experience, priority
        self._next = (self._next + 1) % self.capacity

    def draw(self, count: int) -> list[Experience]:
        """``count`` different experiences, or all that have a priority above 0 if they are fewer.

        Each is drawn with a chance in proportion to its priority among those left: the ``count`` least of ``-ln(u) /
        priority`` (P. Efraimidis and P. Spirakis 2006, Inf. Process. Lett. 97:181).
        """
        priorities = np.array(self._priorities)
        uniform = self.graph.engine.uniform(len(priorities))
        with np.errstate(divide="ignore"):
            times = -np.log1p(-uniform) / priorities
        order = np.argsort(times, kind="stable")[:count]
        return [self._held[i] for i in order if priorities[i] > 0]
