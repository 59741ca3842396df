"""Rows of fixed length from documents that lie end to end."""

from __future__ import annotations

import numpy as np
import torch
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray
from torch import Tensor

from bouton.data.store import TokenStore

IGNORED = -100

Batch = dict[str, Tensor]


class PackedRows:
    """Row i is tokens [i T, i T + T) of a store; its targets are the tokens one further on.

    ``starts`` is True where a document begins, at its ``eot_id``, so also at the first place of a row exactly if a
    document begins there. (A row begins with fresh state anyway.) The target before it is ``eot_id``: the end
    of a document is learned like any other token.
    """

    def __init__(self, store: TokenStore, seq_len: int) -> None:
        self.seq_len = seq_len
        self._documents = store.documents
        self._num_rows = max(0, (len(store) - 1) // seq_len)
        item = store.tokens.itemsize
        # overlapping view (num_rows, T + 1) of the memory map: a batch is one gather of whole rows
        self._windows = as_strided(
            store.tokens, (self._num_rows, seq_len + 1), (seq_len * item, item), writeable=False
        )  # fmt: skip

    def __len__(self) -> int:
        return self._num_rows

    def gather(self, rows: NDArray[np.int64]) -> Batch:
        """The batch of these rows; a row number of -1 gives a filler, whose targets are all ignored."""
        real = rows >= 0
        safe = np.where(real, rows, 0)
        window = self._windows[safe].astype(np.int64)
        tokens, targets = np.ascontiguousarray(window[:, :-1]), np.ascontiguousarray(window[:, 1:])
        starts = self._starts(safe)
        if not real.all():
            targets[~real] = IGNORED
        return {
            "tokens": torch.from_numpy(tokens),
            "targets": torch.from_numpy(targets),
            "starts": torch.from_numpy(starts),
        }

    def _starts(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        begin = rows * self.seq_len
        low = np.searchsorted(self._documents, begin)
        count = np.searchsorted(self._documents, begin + self.seq_len) - low
        starts = np.zeros((len(rows), self.seq_len), dtype=np.bool_)
        slot = np.repeat(np.arange(len(rows)), count)
        # 0, 1, ... within each row's run of documents
        nth = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        starts[slot, self._documents[low[slot] + nth] - begin[slot]] = True
        return starts
