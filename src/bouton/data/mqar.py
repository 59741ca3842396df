"""Multi-query associative recall (Arora et al. 2024, "Zoology", arXiv 2312.04927).

A row holds ``num_pairs`` key-value pairs, then every key once more somewhere behind them; there, and only there, the
target is the key's value::

    tokens   k1 v1 k2 v2  k2  0  0  0  k1  0
    targets   -  -  -  -  v2  -  -  -  v1  -

A row is a pure function of (seed, split, index): nothing is stored, and any rank can make any row.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from bouton.data.packing import IGNORED, Batch
from bouton.data.sampler import U64, key64, mix64
from bouton.errors import ConfigError

_KEYS, _VALUES, _GAPS, _FILL = range(4)


class MQARRows:
    """Rows of the task, generated in batches."""

    def __init__(
        self, *, num_pairs: int, vocab_size: int, seq_len: int, query_power: float, random_fill: bool, seed: int,
        split: int, num_rows: int,
    ) -> None:  # fmt: skip
        """
        Args:
            num_pairs: key-value pairs of a row; every key is asked for once.
            vocab_size: token 0 is the filler, the lower half of the rest are keys, the upper half values.
            query_power: exponent a of the density of the distance x between the pairs and a query, proportional to
                x^(a - 1): 1 is uniform, near 0 most queries come early (the law of natural text).
            random_fill: random tokens instead of the filler between the queries.
            split: 0 for training, 1 for validation: other random numbers.
            num_rows: rows until they repeat.
        """
        if seq_len % 2 or seq_len < 4 * num_pairs:
            raise ConfigError(
                f"data.seq_len={seq_len} must be even and at least 4 * data.num_pairs = {4 * num_pairs}: "
                "the pairs take one half of the row at most, the queries the other"
            )
        if vocab_size // 2 - 1 < num_pairs:
            raise ConfigError(
                f"data.vocab_size={vocab_size} is too small for data.num_pairs={num_pairs}: "
                f"at least {2 * num_pairs + 2} (a filler, and as many keys and values as pairs)"
            )
        self.seq_len = seq_len
        self._num_pairs = num_pairs
        self._vocab_size = vocab_size
        self._random_fill = random_fill
        self._num_rows = num_rows
        self._seed = key64(seed, split)
        places = (seq_len - 2 * num_pairs) // 2
        self._log_density = (query_power - 1.0) * np.log(np.arange(1, places + 1, dtype=np.float64))

    def __len__(self) -> int:
        return self._num_rows

    def gather(self, rows: NDArray[np.int64]) -> Batch:
        """The batch of these rows; a row number of -1 gives a filler, whose targets are all ignored."""
        n, half, count = self._num_pairs, self._vocab_size // 2, len(rows)
        index = rows.astype(np.uint64)[:, None]
        keys = 1 + _first(self._uniform(index, _KEYS, half - 1), n)
        values = half + _first(self._uniform(index, _VALUES, self._vocab_size - half), n)
        # the largest of log density + Gumbel noise: places drawn one after the other without replacement
        noise = -np.log(-np.log(self._uniform(index, _GAPS, len(self._log_density))))
        places = 2 * n + 2 * _first(-(self._log_density + noise), n)

        tokens = np.zeros((count, self.seq_len), dtype=np.int64)
        if self._random_fill:
            fill = self._uniform(index, _FILL, self.seq_len) * (self._vocab_size - 1)
            tokens = 1 + fill.astype(np.int64)
        targets = np.full((count, self.seq_len), IGNORED, dtype=np.int64)
        row = np.arange(count)[:, None]
        tokens[:, 0 : 2 * n : 2] = keys
        tokens[:, 1 : 2 * n : 2] = values
        tokens[row, places] = keys
        targets[row, places] = values
        targets[rows < 0] = IGNORED
        starts = np.zeros((count, self.seq_len), dtype=np.bool_)
        starts[:, 0] = True
        return {
            "tokens": torch.from_numpy(tokens),
            "targets": torch.from_numpy(targets),
            "starts": torch.from_numpy(starts),
        }

    def _uniform(self, index: U64, purpose: int, width: int) -> NDArray[np.float64]:
        """(rows, width) numbers in (0, 1)."""
        stream: U64 = key64(self._seed, purpose, index)
        counters: U64 = np.arange(width, dtype=np.uint64)[None, :]
        bits = mix64(stream + counters) >> np.uint64(12)
        return (bits.astype(np.float64) + 0.5) / 2.0**52


def _first(scores: NDArray[np.float64], n: int) -> NDArray[np.int64]:
    """The columns of the ``n`` smallest scores of each row, in increasing order of score."""
    if n < scores.shape[1]:
        candidates = np.argpartition(scores, n - 1, axis=1)[:, :n]
    else:
        candidates = np.broadcast_to(np.arange(n), scores.shape).copy()
    order = np.argsort(np.take_along_axis(scores, candidates, 1), axis=1)
    return np.take_along_axis(candidates, order, 1).astype(np.int64)
