"""The graph: nodes with names and constants, edges of named relations, and arrays of all of it without copies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bouton.errors import suggest
from bouton.substrate import engine as compiled
from bouton.substrate.arrays import Floats, Ids, Nodes, to_floats, to_ids
from bouton.substrate.engine import Engine

RELATIONS: Mapping[str, float] = MappingProxyType(
    {
        "synonym": 0.95,
        "is_a": 0.70,
        "inverse_is_a": 0.55,
        "part_of": 0.60,
        "has_part": 0.45,
        "related_to": 0.30,
        "antonym": -0.50,
        "co_occurs": 0.25,
        "caused_by": 0.40,
        "causes": 0.40,
        "used_for": 0.35,
        "located_in": 0.30,
        "similar_to": 0.50,
        "depicts": 0.40,
    }
)
"""Relations with a customary weight, by which every contribution along such an edge is multiplied."""
OTHER_RELATION = 0.30


class Graph:
    """Nodes 0, 1, ... and weighted edges between them.

    Args:
        nodes: how many nodes to begin with.
        labels: names for the first nodes, all different; more nodes are made where there are more names.
        seed: of the graph's random numbers.

    Raises:
        KernelError: the compiled engine is not installed.
        ValueError: too many nodes, or a name twice.
    """

    def __init__(self, nodes: int = 0, *, labels: Sequence[str] = (), seed: int = 0) -> None:
        self.engine: Engine = compiled.new(0)
        self._labels: list[str] = []
        self._known: dict[str, int] = {}
        self.engine.seed = seed
        if labels:
            self.add(labels)
        if nodes > len(labels):
            self.add(nodes - len(labels))

    @classmethod
    def of(cls, engine: Engine, labels: Sequence[str]) -> Graph:
        """A graph around an engine; the names belong to its first nodes."""
        graph = cls.__new__(cls)
        graph.engine = engine
        graph._labels, graph._known = [], {}
        graph._name(labels, 0)
        return graph

    def __len__(self) -> int:
        return self.engine.nodes

    def __repr__(self) -> str:
        return f"Graph({len(self):,} nodes, {self.edges:,} edges, relations: {', '.join(self.relations) or 'none'})"

    @property
    def edges(self) -> int:
        """How many edges there are."""
        return self.engine.edges

    @property
    def clock(self) -> int:
        """Steps of spreading so far."""
        return self.engine.clock

    @property
    def relations(self) -> dict[str, float]:
        """Name -> weight, in the order in which sums are made."""
        return dict(self.engine.relations)

    @property
    def labels(self) -> list[str]:
        """Names of the first nodes."""
        return list(self._labels)

    def add(self, more: int | Sequence[str]) -> Ids:
        """New nodes, so many or one per name; returns their ids.

        Raises:
            ValueError: a name that is known, or names behind nodes without.
        """
        names = [] if isinstance(more, int) else list(more)
        count = more if isinstance(more, int) else len(names)
        if count < 0:
            raise ValueError(f"more = {count} must be at least 0")
        if names and len(self._labels) < len(self):
            raise ValueError("labels must be given to all nodes or to the first ones: some nodes have none already")
        if twice := (self._known.keys() & names) | {name for name, times in Counter(names).items() if times > 1}:
            raise ValueError(f"label '{min(twice)}' names a node already")
        first = self.engine.add_nodes(count)
        self._name(names, first)
        return np.arange(first, first + count, dtype=np.uint32)

    def _name(self, names: Sequence[str], first: int) -> None:
        self._known.update((name, first + i) for i, name in enumerate(names))
        self._labels.extend(names)

    def ids(self, nodes: Nodes, name: str = "nodes") -> Ids:
        """Ids of nodes that are given by id or label, (n,).

        Raises:
            ValueError: an unknown label, or something that is no id.
        """
        given = [nodes] if isinstance(nodes, str | int) else nodes
        if isinstance(given, np.ndarray) or not any(isinstance(node, str) for node in given):
            return to_ids(given, name).reshape(-1)
        return np.array([self._id(node) if isinstance(node, str) else node for node in given], np.uint32)

    def _id(self, label: str) -> int:
        if (found := self._known.get(label)) is None:
            raise ValueError(f"label '{label}' names no node: {suggest(label, self._labels[:50])}")
        return found

    def label(self, node: int) -> str:
        """The name of a node, or its number."""
        return self._labels[node] if node < len(self._labels) else str(node)

    def relation(self, name: str, weight: float | None = None) -> int:
        """The number of a relation; a new one is made, with its customary weight unless one is given.

        Raises:
            ValueError: a weight that is no number, or too large.
        """
        number = self.engine.relation(name, RELATIONS.get(name, OTHER_RELATION) if weight is None else weight)
        if weight is not None:
            self.engine.set_relation_weight(number, weight)
        return number

    def known_relation(self, name: str) -> int:
        """The number of a relation that exists.

        Raises:
            ValueError: it does not.
        """
        names = list(self.relations)
        if name not in names:
            raise ValueError(f"relation = '{name}' does not exist: {suggest(name, names)}")
        return names.index(name)

    def connect(self, relation: str, sources: Nodes, targets: Nodes, weights: ArrayLike = 1.0) -> int:
        """Make edges, or set the weights of those that exist; of equal ones the last counts.

        Args:
            relation: made if it is new.
            sources, targets: (n,) each; one node stands for n equal ones.
            weights: (n,), or one for all; signed, up to 1e6 in magnitude.

        Returns:
            How many edges are new.

        Raises:
            ValueError: arrays that do not fit, unknown nodes, weights that are no numbers.
        """
        ends = [self.ids(sources, "sources"), self.ids(targets, "targets")]
        n = max(len(end) for end in ends)
        first, second = (np.repeat(end, n) if len(end) == 1 else end for end in ends)
        return self.engine.connect(self.relation(relation), first, second, to_floats(weights, n, "weights"))

    def disconnect(self, relation: str, sources: Nodes, targets: Nodes) -> int:
        """Remove edges, where they exist; returns how many did."""
        pair = (self.ids(sources, "sources"), self.ids(targets, "targets"))
        return self.engine.disconnect(self.known_relation(relation), *pair)

    def weight(self, relation: str, source: str | int, target: str | int) -> float | None:
        """The weight of an edge; None if there is none."""
        source, target = (int(self.ids(node)[0]) for node in (source, target))
        return self.engine.find(self.known_relation(relation), source, target)

    def set(self, nodes: Nodes, **fields: ArrayLike) -> None:
        """Set constants of nodes: ``decay`` (0 to 1, what is left of a level after a step), ``threshold`` (least level
        that is kept), ``bias`` (resting potential as an answer), ``kind`` (0 to 255).

        Raises:
            ValueError: an unknown field, or a value out of its range.
        """
        ids = self.ids(nodes)
        for field, values in fields.items():
            if field == "kind":
                self.engine.set_kind(ids, np.array(np.broadcast_to(np.asarray(values, np.uint8), ids.shape)))
            else:
                self.engine.set_field(field, ids, to_floats(values, len(ids), field))

    def node_array(self, field: str) -> NDArray[np.generic]:
        """(nodes,) without a copy, read-only: decay, threshold, bias, kind, fired (steps active), last (clock then).

        It shows later changes until nodes are added.
        """
        return self.engine.view(field)

    def edge_arrays(self, relation: str) -> tuple[Ids, Ids, Floats]:
        """Sources, targets and weights of all edges of a relation, (edges,) each, ascending; copies."""
        rows = self.engine.rows(self.known_relation(relation)).reshape(-1, 2).astype(np.int64)
        start, length = rows[:, 0], rows[:, 1]
        before = np.cumsum(length) - length
        slots = np.arange(length.sum()) + np.repeat(start - before, length)
        sources = np.repeat(np.arange(len(rows), dtype=np.uint32), length)
        return sources, self.engine.view("target")[slots], self.engine.view("weight")[slots]

    def row(self, relation: str, node: str | int) -> tuple[Ids, Floats]:
        """Targets and weights of the edges of one node, ascending, without a copy, read-only."""
        rows = self.engine.rows(self.known_relation(relation)).reshape(-1, 2)
        if not len(rows):
            return np.zeros(0, np.uint32), np.zeros(0, np.float32)
        start, length = (int(x) for x in rows[int(self.ids(node)[0])])
        here = slice(start, start + length)
        return self.engine.view("target")[here], self.engine.view("weight")[here]

    def size(self) -> dict[str, int]:
        """Bytes of nodes, rows, edges, eligibility, transpose and scratch, their sum as total, and slack: places in the
        array of edges that hold none."""
        size = self.engine.size()
        return {**size, "total": sum(bytes_ for name, bytes_ in size.items() if name != "slack")}

    def compact(self) -> None:
        """Move all rows together: no slack is left, arrays seen before are out of date."""
        self.engine.compact()
