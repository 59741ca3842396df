from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from bouton.data.packing import IGNORED, PackedRows
from bouton.data.store import TokenStore


def store(lengths: list[int]) -> TokenStore:
    """Documents of these lengths; token i of the corpus is i + 1, and 0 where a document begins."""
    documents = np.cumsum([0, *lengths[:-1]]).astype(np.int64)
    tokens = np.arange(1, sum(lengths) + 1).astype(np.uint16)
    tokens[documents] = 0
    return TokenStore(Path(), tokens, documents, 0, {})


def test_rows_lie_end_to_end_with_shifted_targets() -> None:
    data = store([5, 9, 1, 1, 30, 4])
    rows = PackedRows(data, 8)
    assert len(rows) == (50 - 1) // 8
    batch = rows.gather(np.arange(len(rows)))
    assert np.array_equal(batch["tokens"].numpy().ravel(), data.tokens[: len(rows) * 8])
    assert np.array_equal(batch["targets"].numpy().ravel(), data.tokens[1 : len(rows) * 8 + 1])
    assert {name: value.dtype for name, value in batch.items()} == {
        "tokens": torch.int64, "targets": torch.int64, "starts": torch.bool}  # fmt: skip
    assert all(value.is_contiguous() for value in batch.values())


def test_starts_are_where_documents_begin() -> None:
    rng = np.random.default_rng(0)
    data = store(rng.integers(1, 12, size=60).tolist())
    rows = PackedRows(data, 7)
    chosen = rng.permutation(len(rows))
    batch = rows.gather(chosen)
    assert torch.equal(batch["starts"], batch["tokens"] == 0)
    assert batch["starts"].any(1).float().mean() < 1  # rows without a beginning are among them
    alone = rows.gather(chosen[3:4])
    assert torch.equal(alone["starts"][0], batch["starts"][3])


def test_exact_fit_and_too_short() -> None:
    assert len(PackedRows(store([17]), 8)) == 2
    assert len(PackedRows(store([16]), 8)) == 1
    assert len(PackedRows(store([8]), 8)) == 0


def test_filler_rows_are_ignored() -> None:
    batch = PackedRows(store([40]), 8).gather(np.array([2, -1]))
    assert (batch["targets"][1] == IGNORED).all()
    assert (batch["targets"][0] != IGNORED).all()
