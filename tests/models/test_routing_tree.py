"""The routing tree: splits nest, removals collapse, every mean is over the experts of a subtree."""

from __future__ import annotations

import pytest

from bouton.models.routing_tree import Tree


def fresh(slots: int = 6, experts: int = 3) -> Tree:
    return Tree([e if e < experts else -1 for e in range(slots)], [[-1, -1] for _ in range(slots - 1)])


def test_splits_nest_under_one_root() -> None:
    tree = fresh()
    assert (tree.roots, tree.alive, tree.depth()) == ([0, 1, 2], [0, 1, 2], 0)
    first, second = tree.split(1, 3), tree.split(3, 4)
    assert tree.roots == [0, 1, 2] and tree.alive == [0, 1, 2, 3, 4] and tree.depth() == 2
    assert tree.entry[1] == 6 + first and tree.children[first] == [1, 6 + second] and tree.children[second] == [3, 4]
    assert list(tree.leaves(tree.entry[1])) == [1, 3, 4]
    assert [tree.root_of(e) for e in tree.alive] == [0, 1, 2, 1, 1]


def test_a_removed_twin_leaves_its_place_to_the_other() -> None:
    tree = fresh()
    node = tree.split(1, 3)
    tree.split(3, 4)
    assert tree.remove(1) is None
    assert tree.children[node] == [-1, -1] and list(tree.leaves(tree.entry[1])) == [3, 4]
    assert tree.remove(4) is None and tree.entry == [0, 3, 2, -1, -1, -1]
    assert tree.remove(3) == 1 and tree.roots == [0, 2]
    assert tree.split(0, 1) == 0  # free nodes and slots are used again
    assert tree.alive == [0, 1, 2]


def test_membership_takes_means_over_subtrees() -> None:
    tree = fresh()
    node, deeper = tree.split(1, 3), tree.split(3, 4)
    rows = tree.membership()
    assert rows[0] == [1, 0, 0, 0, 0, 0] and rows[5] == [0] * 6
    assert rows[1] == pytest.approx([0, 1 / 3, 0, 1 / 3, 1 / 3, 0])
    assert rows[6 + node] == pytest.approx([0, 1, 0, -1 / 2, -1 / 2, 0])
    assert rows[6 + deeper] == pytest.approx([0, 0, 0, 1, -1, 0])
    assert len(rows) == 11 and rows[10] == [0] * 6
