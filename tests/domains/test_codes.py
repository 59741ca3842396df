"""Codes: which nodes are active for a grid of levels, by a plain loop; and what examples share."""

import numpy as np
import pytest

from bouton.domains.codes import Cells, Patches, join, one_hot, seen_before, shrink
from bouton.substrate.arrays import NONE


def _names(active: np.ndarray, names: list[str]) -> list[list[str]]:
    return [[names[i] for i in row if i != NONE] for row in active]


@pytest.mark.parametrize(("shape", "axes"), [((3, 4), "rc"), ((2, 3, 4), "trc")])
def test_cells_name_what_is_at_each_place(shape: tuple[int, ...], axes: str) -> None:
    grids = np.random.default_rng(0).integers(0, 4, (401, *shape), np.uint8)
    grids[7] = 0
    coder = Cells(shape, 4, axes)
    names = coder.names()
    assert len(names) == coder.nodes == len(set(names))
    expected = [
        ["".join(f"{a}{i}" for a, i in zip(axes, at, strict=True)) + f"={v}" for at, v in np.ndenumerate(grid) if v]
        for grid in grids
    ]
    active = coder(grids)
    assert active.dtype == np.uint32 and _names(active, names) == expected
    assert active.shape[1] == max(map(len, expected))


@pytest.mark.parametrize("levels", [2, 3, 5])
def test_patches_name_what_is_around_each_corner(levels: int) -> None:
    grids = np.random.default_rng(1).integers(0, levels, (201, 4, 5), np.uint8)
    grids[:, :3, :3] = 0
    coder = Patches((4, 5), levels)
    names = coder.names()
    assert len(names) == coder.nodes == len(set(names))
    expected = [
        [
            f"r{r}c{c}=" + "".join(map(str, grid[r : r + 2, c : c + 2].ravel()))
            for r in range(3)
            for c in range(4)
            if grid[r : r + 2, c : c + 2].any()
        ]
        for grid in grids
    ]
    assert _names(coder(grids), names) == expected


def test_join_puts_nodes_behind_each_other() -> None:
    first, second = np.array([[0, NONE], [1, 2]], np.uint32), np.array([[4], [NONE]], np.uint32)
    active, nodes = join([(first, 3), (second, 5)])
    assert nodes == 8
    assert active.tolist() == [[0, NONE, 7], [1, 2, NONE]]
    assert one_hot(active, nodes).toarray().tolist() == [[1, 0, 0, 0, 0, 0, 0, 1], [0, 1, 1, 0, 0, 0, 0, 0]]


def test_known_codes_are_counted_without_what_is_empty() -> None:
    train = np.array([[1, 2], [3, NONE]], np.uint32)
    test = np.array([[3, NONE, NONE], [1, NONE, NONE], [1, 2, NONE], [2, 1, 0]], np.uint32)
    assert seen_before(train, test) == 0.5


@pytest.mark.parametrize(("cells", "to"), [(28, 16), (7, 3), (5, 5), (3, 8)])
def test_shrinking_takes_means_over_equal_lengths(cells: int, to: int) -> None:
    values = np.random.default_rng(2).random(cells)
    fine = np.repeat(values, to).reshape(to, cells).mean(axis=1)
    np.testing.assert_allclose(shrink(cells, to) @ values, fine, rtol=1e-5)
