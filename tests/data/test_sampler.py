from __future__ import annotations

import numpy as np
import pytest

from bouton.data.sampler import key64, mix64, permute, sample_indices, training_rows


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 65, 1000, 4097])
def test_permutation_is_a_bijection(size: int) -> None:
    index = np.arange(size, dtype=np.uint64)
    for seed in range(3):
        assert np.array_equal(np.sort(permute(index, size, key64(seed, 0))), index)


def test_permutation_depends_on_the_key_and_looks_random() -> None:
    index = np.arange(5000, dtype=np.uint64)
    first, second = permute(index, 5000, key64(0, 0)), permute(index, 5000, key64(0, 1))
    assert (first == second).mean() < 0.01
    assert abs(np.corrcoef(index, first)[0, 1]) < 0.05
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.05
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.05


def test_an_element_does_not_depend_on_the_others() -> None:
    samples = np.arange(50, dtype=np.int64) * 13
    whole = training_rows(samples, 100, seed=3)
    assert [training_rows(samples[i : i + 1], 100, seed=3)[0] for i in range(50)] == whole.tolist()


def test_every_epoch_visits_every_row_once_in_another_order() -> None:
    rows = training_rows(np.arange(300, dtype=np.int64), 100, seed=1).reshape(3, 100)
    assert all(sorted(epoch) == list(range(100)) for epoch in rows.tolist())
    assert not np.array_equal(rows[0], rows[1])
    assert not np.array_equal(rows[0], training_rows(np.arange(100, dtype=np.int64), 100, seed=2))


def test_two_ranks_with_b_equal_one_with_2b() -> None:
    for step in range(5):
        one = sample_indices(step, 0, 1, 8)
        two = [sample_indices(step, rank, 2, 4) for rank in range(2)]
        assert np.array_equal(np.concatenate(two), one)


def test_known_values() -> None:
    """The order of a run must not change with a release."""
    assert mix64(np.array([0], dtype=np.uint64))[0] == 0xE220A8397B1DCDAF  # SplitMix64 of seed 0, first output
    assert training_rows(np.arange(8, dtype=np.int64), 10, seed=0).tolist() == [9, 4, 0, 2, 7, 3, 8, 5]
