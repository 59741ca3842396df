"""What the associative body remembers of what it has seen, to grow: seldom seen things get no edge and no node."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.int64]
_MIX = np.uint64(0x9E3779B97F4A7C15)
BITS = 24


class Sketch:
    """How often each of very many keys was seen, in 16 MB: keys that fall into the same place are counted together, so
    that a count may be too high, never too low. Counts end at 255.

    Attributes:
        counts: (2^24,) uint8.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(1 << BITS, np.uint8)

    def add(self, keys: Keys) -> tuple[Keys, NDArray[np.int64]]:
        """Count keys (n,) >= 0; returns the distinct ones, ascending, and how often each was seen until now."""
        distinct, times = np.unique(keys, return_counts=True)
        places = (distinct.astype(np.uint64) * _MIX) >> np.uint64(64 - BITS)
        total = self.counts[places].astype(np.int64) + times
        # Of several keys in one place the largest total stays.
        np.maximum.at(self.counts, places, np.minimum(total, 255).astype(np.uint8))
        return distinct, total


class Directory:
    """Keys with a number each, found by bisection.

    Attributes:
        keys: (n,) ascending.
        numbers: (n,) in the order of the keys.
    """

    def __init__(self, keys: Keys | None = None, numbers: Keys | None = None) -> None:
        self.keys = np.zeros(0, np.int64) if keys is None else keys
        self.numbers = np.zeros(0, np.int64) if numbers is None else numbers

    def __len__(self) -> int:
        return len(self.keys)

    def find(self, keys: Keys) -> Keys:
        """The numbers of keys of any shape; -1 for those that are not there."""
        if not len(self.keys):
            return np.full(keys.shape, -1, np.int64)
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        found: Keys = np.where(self.keys[at] == keys, self.numbers[at], -1)
        return found

    def add(self, keys: Keys, numbers: Keys) -> None:
        """Put in keys (n,), ascending, of which none is there."""
        at = np.searchsorted(self.keys, keys)
        self.keys = np.insert(self.keys, at, keys)
        self.numbers = np.insert(self.numbers, at, numbers)
