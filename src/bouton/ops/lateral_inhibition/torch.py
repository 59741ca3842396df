"""Lateral inhibition for all tokens at once.

The sum over the last w vectors is put together from sums over 1, 2, 4, ... of them, each made of two of the previous
size: log2(w) additions, no running total (whose rounding error would grow with the length), and the same additions in
the same order for a token wherever the sequence is cut into chunks, so that decoding equals the parallel form exactly.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def lateral_inhibition_torch(
    x: Tensor, strength: float, window: int, starts: Tensor | None, past: Tensor, valid: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`bouton.ops.lateral_inhibition.lateral_inhibition`.

    ``past`` (B, H, window, D) holds the preceding vectors, 0 where ``valid`` (B, window) is False.
    """
    batch, _, tokens, _ = x.shape
    vectors = torch.cat((past, x), dim=2)
    exists = torch.cat((valid, valid.new_ones(batch, tokens)), dim=1)
    documents = None
    if starts is not None:
        documents = F.pad(starts.long().cumsum(dim=1), (window, 0))  # the past belongs to document 0
    precision = torch.promote_types(x.dtype, torch.float32)
    total = _sum_of_previous(vectors.to(precision), window, documents)[:, :, window:]
    count = _sum_of_previous(exists[:, None, :, None].to(precision), window, documents)[:, :, window:]
    y = (x - strength * total / count.clamp_min(1)).to(x.dtype)

    kept, kept_exist = vectors[:, :, tokens:], exists[:, tokens:]
    if documents is not None:
        kept_exist = kept_exist & (documents[:, tokens:] == documents[:, -1:])
        kept = torch.where(kept_exist[:, None, :, None], kept, 0)
    return y, kept, kept_exist


def _sum_of_previous(x: Tensor, window: int, documents: Tensor | None) -> Tensor:
    """At index i the sum of x (B, H, L, D) over i - window .. i - 1 in the document of i; exact for i >= window."""
    total = torch.zeros_like(x)
    block, size, offset = x, 1, 1  # block[i] sums the last `size` vectors, i included, of the document of i
    while True:
        if window & size:
            total = total + _delayed(block, offset, documents)
            offset += size
        if offset > window:
            return total
        block = block + _delayed(block, size, documents)
        size *= 2


def _delayed(block: Tensor, by: int, documents: Tensor | None) -> Tensor:
    """At index i what ``block`` holds at i - by, 0 if that does not exist or belongs to another document."""
    by = min(by, block.shape[2])
    delayed = F.pad(block[:, :, : block.shape[2] - by], (0, 0, by, 0))
    if documents is None:
        return delayed
    same = documents == F.pad(documents[:, : documents.shape[1] - by], (by, 0), value=-1)
    return torch.where(same[:, None, :, None], delayed, 0)
