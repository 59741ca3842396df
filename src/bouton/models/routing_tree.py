"""The routing tree of a mixture of experts: which expert a choice of the router leads to.

The router chooses among *roots*. A root is an expert, or a *node* that sends each token on to one of its two children,
each an expert or a node again. A pointer is a number: below ``slots`` it is the expert in that slot, slots + n is node
n, and -1 is nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Tree:
    """The tree of one layer, on the host.

    Attributes:
        entry: per row of the router the pointer that it leads to.
        children: per node its two pointers, (-1, -1) where the node is free.
    """

    entry: list[int]
    children: list[list[int]]
    slots: int = field(init=False)

    def __post_init__(self) -> None:
        self.slots = len(self.entry)

    @property
    def roots(self) -> list[int]:
        """The rows of the router that lead somewhere."""
        return [row for row, pointer in enumerate(self.entry) if pointer >= 0]

    @property
    def alive(self) -> list[int]:
        """The experts that can be reached."""
        return sorted(leaf for row in self.roots for leaf in self.leaves(self.entry[row]))

    def leaves(self, pointer: int) -> Iterator[int]:
        """The experts under a pointer, from left to right."""
        if pointer < self.slots:
            yield pointer
        else:
            for child in self.children[pointer - self.slots]:
                yield from self.leaves(child)

    def depth(self) -> int:
        """Largest number of nodes on the way to an expert."""
        return max((self._depth(self.entry[row]) for row in self.roots), default=0)

    def _depth(self, pointer: int) -> int:
        if pointer < self.slots:
            return 0
        return 1 + max(self._depth(child) for child in self.children[pointer - self.slots])

    def root_of(self, leaf: int) -> int:
        """The row of the router under which an expert is."""
        return next(row for row in self.roots if leaf in self.leaves(self.entry[row]))

    def split(self, leaf: int, slot: int) -> int:
        """Put a node in the place of an expert, over it and the free ``slot``. Returns the node."""
        node = next(n for n, pair in enumerate(self.children) if pair[0] < 0)
        self._replace(leaf, self.slots + node)
        self.children[node] = [leaf, slot]
        return node

    def remove(self, leaf: int) -> int | None:
        """Take an expert out; its twin takes the place of their node. Returns the root's row if it was a whole root."""
        for node, pair in enumerate(self.children):
            if leaf in pair:
                sibling = pair[1 - pair.index(leaf)]
                self.children[node] = [-1, -1]
                self._replace(self.slots + node, sibling)
                return None
        row = self.entry.index(leaf)
        self.entry[row] = -1
        return row

    def _replace(self, old: int, new: int) -> None:
        for pointers in (self.entry, *self.children):
            for i, pointer in enumerate(pointers):
                if pointer == old:
                    pointers[i] = new
                    return

    def membership(self) -> list[list[float]]:
        """(2 slots - 1, slots): means over the experts of each root, and of left minus right child of each node.

        Multiplied with a value per expert it gives what that value adds to the logit of every root and node.
        """
        rows = [[0.0] * self.slots for _ in range(2 * self.slots - 1)]
        for row in self.roots:
            self._add(rows[row], self.entry[row], 1.0)
        for node, (left, right) in enumerate(self.children):
            if left >= 0:
                self._add(rows[self.slots + node], left, 1.0)
                self._add(rows[self.slots + node], right, -1.0)
        return rows

    def _add(self, row: list[float], pointer: int, weight: float) -> None:
        leaves = list(self.leaves(pointer))
        for leaf in leaves:
            row[leaf] += weight / len(leaves)


@dataclass(frozen=True)
class Routes:
    """A :class:`Tree` as the router uses it, on the device of the model.

    Attributes:
        entry: (slots,) pointers.
        children: (slots - 1, 2) pointers.
        membership: (2 slots - 1, slots), see :meth:`Tree.membership`.
        rows: (2 slots - 1,) bool, the roots and nodes that there are.
        is_root: (slots,) bool, the first of them.
        roots: the rows that lead somewhere.
        depth: nodes on the longest way to an expert.
        alive: number of experts.
    """

    entry: Tensor
    children: Tensor
    membership: Tensor
    rows: Tensor
    is_root: Tensor
    roots: tuple[int, ...]
    depth: int
    alive: int

    @classmethod
    def of(cls, tree: Tree, entry: Tensor, children: Tensor) -> Routes:
        """``entry`` and ``children`` are the tree's, on the device of the model."""
        return cls(
            entry=entry,
            children=children,
            membership=torch.tensor(tree.membership(), device=entry.device, dtype=torch.float64),
            rows=torch.cat((entry >= 0, children[:, 0] >= 0)),
            is_root=entry >= 0,
            roots=tuple(tree.roots),
            depth=tree.depth(),
            alive=len(tree.alive),
        )
