"""Codes: which input nodes an example makes active, from a grid of levels; and how much examples share them.

A grid is any array of small whole numbers, level 0 being silence: pixels, bands of a spectrum over time, frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from bouton.substrate.arrays import NONE, Ids

Levels = NDArray[np.uint8]
Matrix: TypeAlias = "scipy.sparse.csr_matrix"
CHUNK = 200  # examples at a time, so that they stay in the cache


@dataclass(frozen=True)
class Cells:
    """One node for every level above 0 of every cell; exactly one of a cell is active, none at level 0.

    Attributes:
        shape: of a grid.
        levels: how many there are, with level 0.
        axes: a letter for each axis, for the nodes' names: ``r3c12=2``.
    """

    shape: tuple[int, ...]
    levels: int
    axes: str = "rc"

    @property
    def nodes(self) -> int:
        """How many nodes there are."""
        return int(np.prod(self.shape)) * (self.levels - 1)

    def names(self) -> list[str]:
        """(nodes,) in the order of their numbers."""
        return [f"{_place(i, self.axes)}={v}" for i in np.ndindex(self.shape) for v in range(1, self.levels)]

    def __call__(self, grids: Levels) -> Ids:
        """(examples, *shape) -> (examples, width) numbers of the active nodes, ascending, then NONE."""
        return _active(grids.reshape(len(grids), -1), self.levels - 1)


@dataclass(frozen=True)
class Patches:
    """One node for every content of every patch of 2 x 2 neighbours, but the silent one: what is local in an image.

    Attributes:
        shape: of a grid, two-dimensional.
        levels: how many there are, with level 0; a patch has ``levels ** 4`` contents.
        axes: a letter for each axis, for the nodes' names: ``r3c12=0110`` reads the patch row by row.
    """

    shape: tuple[int, int]
    levels: int
    axes: str = "rc"

    @property
    def nodes(self) -> int:
        """How many nodes there are."""
        return (self.shape[0] - 1) * (self.shape[1] - 1) * (self.levels**4 - 1)

    def names(self) -> list[str]:
        """(nodes,) in the order of their numbers."""
        contents = [
            "".join(str(code // self.levels**k % self.levels) for k in range(4)) for code in range(1, self.levels**4)
        ]
        places = np.ndindex(self.shape[0] - 1, self.shape[1] - 1)
        return [f"{_place(i, self.axes)}={content}" for i in places for content in contents]

    def __call__(self, grids: Levels) -> Ids:
        """(examples, *shape) -> (examples, width) numbers of the active nodes, ascending, then NONE."""
        one: NDArray[Any] = grids.astype(np.uint8 if self.levels < 4 else np.uint16, copy=False)
        contents = one[:, :-1, :-1].copy()
        for k, corner in enumerate((one[:, :-1, 1:], one[:, 1:, :-1], one[:, 1:, 1:]), start=1):
            contents += corner * one.dtype.type(self.levels**k)
        return _active(contents.reshape(len(grids), -1), self.levels**4 - 1)


@dataclass(frozen=True)
class Both:
    """Cells and patches of the same grid."""

    cells: Cells
    patches: Patches

    @property
    def nodes(self) -> int:
        """How many nodes there are."""
        return self.cells.nodes + self.patches.nodes

    def names(self) -> list[str]:
        """(nodes,) in the order of their numbers."""
        return [*self.cells.names(), *self.patches.names()]

    def __call__(self, grids: Levels) -> Ids:
        """(examples, *shape) -> (examples, width) numbers of the active nodes, NONE where there are fewer."""
        return join([(self.cells(grids), self.cells.nodes), (self.patches(grids), self.patches.nodes)])[0]


Coder: TypeAlias = Cells | Patches | Both
CODES = ("cells", "patches", "both")


def coder(code: str, shape: tuple[int, int], levels: int, axes: str = "rc") -> Coder:
    """The coder of that name among :data:`CODES`."""
    cells, patches = Cells(shape, levels, axes), Patches(shape, levels, axes)
    return cells if code == "cells" else patches if code == "patches" else Both(cells, patches)


def _place(index: Sequence[int], axes: str) -> str:
    return "".join(f"{axis}{i}" for axis, i in zip(axes, index, strict=True))


def _active(values: NDArray[Any], most: int) -> Ids:
    """(examples, places), 0 to most -> node ``place * most + value - 1`` of all values above 0, packed to the left."""
    counts = np.count_nonzero(values, axis=1)
    active = np.full((len(values), int(counts.max(initial=0))), NONE, np.uint32)
    column = np.arange(active.shape[1])
    first = np.arange(values.shape[1], dtype=np.uint32) * np.uint32(most) - np.uint32(1)
    for i in range(0, len(values), CHUNK):
        here = slice(i, i + CHUNK)
        nodes = values[here] + first
        active[here][column < counts[here, None]] = nodes[values[here] > 0]
    return active


def join(parts: Sequence[tuple[Ids, int]]) -> tuple[Ids, int]:
    """Codes of the same examples with how many nodes each has -> one code, the nodes of later parts behind."""
    first, shifted = 0, []
    for active, nodes in parts:
        shifted.append(np.where(active == NONE, np.uint32(NONE), active + np.uint32(first)))
        first += nodes
    return np.concatenate(shifted, axis=1), first


def one_hot(active: Ids, nodes: int) -> Matrix:
    """(examples, nodes) with 1 where a node is active."""
    given = active != NONE
    ends = np.concatenate([[0], np.cumsum(given.sum(axis=1))])
    ones = np.ones(int(ends[-1]), np.float32)
    shape = (len(active), nodes)
    return scipy.sparse.csr_matrix((ones, active[given].astype(np.int32), ends), shape=shape)


def distinct(active: Ids) -> set[bytes]:
    """The different codes among examples."""
    return {row[row != NONE].tobytes() for row in np.ascontiguousarray(active)}


def seen_before(train: Ids, test: Ids) -> float:
    """Share of the test examples whose code occurs among the training examples."""
    known = distinct(train)
    return float(np.mean([row[row != NONE].tobytes() in known for row in np.ascontiguousarray(test)]))


def cut(values: NDArray[Any], cuts: Sequence[float]) -> Levels:
    """Levels, 0 to ``len(cuts)``: how many cuts a value has reached."""
    return np.searchsorted(np.array(cuts), values, side="right").astype(np.uint8)


def shrink(cells: int, to: int) -> NDArray[np.float32]:
    """(to, cells) weights by which an axis is shrunk: means over equal lengths, cells at an edge counted in part."""
    edges = np.arange(to + 1) * cells / to
    upper = np.minimum(edges[1:, None], np.arange(1, cells + 1))
    lower = np.maximum(edges[:-1, None], np.arange(cells))
    weights = np.maximum(upper - lower, 0.0)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)
