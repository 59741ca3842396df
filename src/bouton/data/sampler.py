"""The order of training samples: a pure function of (seed, index), so that resuming needs one number.

Each epoch visits the rows in its own pseudorandom permutation, computed element by element by a Feistel network with
cycle walking (Black and Rogaway 2002), so no table of the corpus' size is ever built. The same counter-based
hash gives the synthetic tasks their random numbers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]

_ROUNDS = 6


def mix64(x: U64) -> U64:
    """SplitMix64's finaliser (Steele et al. 2014): a bijection of 64-bit words whose output looks random."""
    x = (x + np.uint64(0x9E3779B97F4A7C15)).astype(np.uint64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def key64(*parts: int | U64) -> U64:
    """One key from several integers or arrays that broadcast against each other; order matters."""
    key = np.zeros(1, dtype=np.uint64)
    for part in parts:
        word = part if isinstance(part, np.ndarray) else np.array([part % 2**64], dtype=np.uint64)
        key = mix64(key ^ mix64(word))
    return key


def permute(index: U64, size: int, key: U64) -> U64:
    """Element ``index`` (each < size) of the pseudorandom permutation of range(size) that ``key`` selects."""
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    limit = np.uint64(size)
    result = index.copy()
    keys = np.broadcast_to(key, index.shape)
    todo = np.arange(len(index))
    while len(todo):
        left, right = result[todo] >> half, result[todo] & mask
        for turn in range(_ROUNDS):
            scrambled = mix64(right ^ mix64(keys[todo] + np.uint64(turn)))
            left, right = right, left ^ (scrambled & mask)
        result[todo] = (left << half) | right
        todo = todo[result[todo] >= limit]
    return result


def sample_indices(step: int, rank: int, world_size: int, batch_size: int, base: int = 0) -> NDArray[np.int64]:
    """The global samples of one rank's batch: base + step * W * B + rank * B + slot."""
    start = base + (step * world_size + rank) * batch_size
    return np.arange(start, start + batch_size, dtype=np.int64)


def training_rows(samples: NDArray[np.int64], num_rows: int, seed: int) -> NDArray[np.int64]:
    """The row that each sample of the endless training stream reads: epoch after epoch, each in its own order."""
    epoch, position = np.divmod(samples.astype(np.uint64), np.uint64(num_rows))
    return permute(position, num_rows, key64(seed, epoch)).astype(np.int64)
