"""2-simplicial attention for all queries at once, on windows of keys gathered per query.

Nothing is larger than (B, H, T, w2, w1): the query times the keys of the second window, then one matrix product with
those of the first.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def simplicial_attention_torch(
    q: Tensor,
    k1: Tensor,
    v1: Tensor,
    k2: Tensor,
    v2: Tensor,
    seen1: Tensor,
    seen2: Tensor,
    bias1: Tensor | None,
    bias2: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The context (B, H, T, D) and the weights of the pairs (B, H, T, w2, w1).

    Args:
        q: (B, H, T, D).
        k1, v1: (B, H_kv, w1 - 1 + T, D): the new ones after the w1 - 1 before them.
        k2, v2: (B, H_kv, w2 - 1 + T, D).
        seen1, seen2: (B, T, w1) and (B, T, w2) bool, which slots of a query's windows it may see, oldest first.
        bias1, bias2: (B or 1, H or 1, T, w1) and (..., w2), or None.
    """
    batch, heads, tokens, dim = q.shape
    kv_heads = k1.shape[1]
    w1, w2 = seen1.shape[-1], seen2.shape[-1]
    group = heads // kv_heads
    # (B, H_kv, T, D, w) views of the windows
    k1, v1 = k1.unfold(2, w1, 1), v1.unfold(2, w1, 1)
    k2, v2 = k2.unfold(2, w2, 1), v2.unfold(2, w2, 1)
    grouped = q.view(batch, kv_heads, group, tokens, dim).transpose(2, 3) * dim**-0.5
    pairs = grouped[:, :, :, :, None] * k2.mT[:, :, :, None]  # (B, H_kv, T, G, w2, D)
    logits = pairs.flatten(3, 4) @ k1
    logits = logits.view(batch, kv_heads, tokens, group, w2, w1).transpose(2, 3).reshape(batch, heads, tokens, w2, w1)
    if bias1 is not None:
        logits = logits + bias1[..., None, :]
    if bias2 is not None:
        logits = logits + bias2[..., :, None]
    seen = seen1[:, None, :, None, :] & seen2[:, None, :, :, None]
    logits = logits.masked_fill(~seen, -torch.inf)
    weights = logits.flatten(-2).softmax(-1)
    by_group = weights.view(batch, kv_heads, group, tokens, w2, w1).transpose(2, 3)
    read = by_group.reshape(batch, kv_heads, tokens, group * w2, w1) @ v1.mT  # sum over the first window
    read = read.view(batch, kv_heads, tokens, group, w2, dim) * v2.mT[:, :, :, None]
    out = read.sum(-2).transpose(2, 3).reshape(batch, heads, tokens, dim)
    return out, weights.view(batch, heads, tokens, w2, w1)


def documents(starts: Tensor | None, valid: Tensor, tokens: int) -> Tensor:
    """(B, n + T) int64: the document of each remembered and new token, -1 where there is none; the past is 0."""
    past = valid.long() - 1
    if starts is None:
        return torch.cat((past, past.new_zeros(past.shape[0], tokens)), dim=1)
    return torch.cat((past, starts.long().cumsum(1)), dim=1)


def seen(document: Tensor, window: int, tokens: int) -> Tensor:
    """(B, T, window) bool: which of the last ``window`` tokens, oldest first, are of the query's document."""
    needed = window - 1 + tokens
    recent = F.pad(document, (max(0, needed - document.shape[1]), 0), value=-1)[:, -needed:]
    return recent.unfold(1, window, 1) == document[:, -tokens:, None]


def last(x: Tensor, document: Tensor, kept: int) -> Tensor:
    """(B, H_kv, kept, D): the last vectors of ``x``, 0 where they are of another document or do not exist."""
    n = x.shape[2]
    x, document = (
        F.pad(x, (0, 0, max(0, kept - n), 0)),
        F.pad(document, (max(0, kept - document.shape[1]), 0), value=-1),
    )
    x, document = x[:, :, x.shape[2] - kept :], document[:, document.shape[1] - kept :]
    return torch.where((document == document[:, -1:])[:, None, :, None], x, 0) if kept else x
