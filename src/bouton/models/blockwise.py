"""Plain attention without the pairs that no query sees: documents packed into rows, and sliding windows.

Torch's fused CPU kernel takes either the causal mask, or a dense one of which it computes every entry: two documents
in a row then cost as much as one that fills it. Here the sequence is cut into blocks; each is one call of that kernel
with the keys that its queries can see. The sum is the same, so results differ from the dense form by rounding alone.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Queries of a block where a document is cut. Below 192 the kernel takes 32 queries at once, from there on 64.
QUERIES = 192
# In half precision the matrix unit wants even blocks: cut by position, not by document, keys from a multiple of 64 on.
QUERIES_HALF, KEYS_HALF = 256, 64


@dataclass(frozen=True)
class Block:
    """Queries that are computed together.

    Attributes:
        length: number of queries; they follow those of the block before.
        past: number of keys before the first query; the keys end with the last query.
        mask: (length, past + length) bool, True = visible; None: causal, and ``past`` is 0.
    """

    length: int
    past: int = 0
    mask: Tensor | None = None


def plan(starts: Tensor, window: int | None, dtype: torch.dtype) -> list[Block] | None:
    """How to cut a sequence into blocks; None where one call with the dense mask is as fast.

    Args:
        starts: (R, T) bool on the CPU, True where a document begins. The R rows are computed as one sequence of R T
            tokens, in which no row sees another; a single row can stand for all rows of a batch.
        window: a query at t sees the keys in (t - window, t]; None: all earlier ones of its document.
        dtype: of the queries.
    """
    rows, t = starts.shape
    half = dtype in (torch.bfloat16, torch.float16)
    size, grain = (QUERIES_HALF, KEYS_HALF) if half else (QUERIES, 1)
    if t <= size:
        return None
    first = starts.clone()
    first[:, 0] = True
    begins = first.flatten().nonzero().flatten().tolist()
    if half:
        edges = [row * t + x for row in range(rows) for x in range(0, t, size)]
    else:
        ends = [*begins[1:], rows * t]
        edges = [x for a, b in zip(begins, ends, strict=True) for x in _cuts(a, b, window)]
    blocks = []
    for low, high in zip(edges, [*edges[1:], rows * t], strict=True):
        of_first = bisect_right(begins, low) - 1
        documents = [x - low for x in begins[of_first : bisect_left(begins, high)]]
        past = -documents[0] if window is None else min(-documents[0], window - 1)
        past = min(-(-past // grain) * grain, low % t)
        length = high - low
        if past == 0 and len(documents) == 1 and (window is None or window >= length):
            blocks.append(Block(length))
        else:
            blocks.append(Block(length, past, _mask(length, past, documents, window)))
    return blocks


def attention(q: Tensor, k: Tensor, v: Tensor, blocks: Sequence[Block]) -> Tensor:
    """softmax(q k^T / sqrt(D)) v over the keys that the ``blocks`` let each query see.

    Args:
        q: (B, H, T, D). The lengths of the blocks add up to T, or to B T for the rows of the batch end to end.
        k, v: (B, H_kv, T, D), H_kv divides H.

    Returns:
        (B, H, T, D).
    """
    batch, heads, t, _ = q.shape
    gqa = heads != k.shape[1]
    lengths = [block.length for block in blocks]
    if sum(lengths) != t:
        q, k, v = (x.transpose(1, 2).flatten(0, 1)[None].transpose(1, 2) for x in (q, k, v))
        one = attention(q, k, v, blocks)
        return one.transpose(1, 2).reshape(batch, t, heads, -1).transpose(1, 2)
    # Splitting and joining have a gradient that costs as much as they do; that of a slice fills a whole tensor.
    queries, keys, values = (x.split(lengths, dim=2) for x in (q, k, v))
    results = []
    for index, block in enumerate(blocks):
        results.append(
            F.scaled_dot_product_attention(
                queries[index],
                _with_past(keys, index, block.past),
                _with_past(values, index, block.past),
                attn_mask=block.mask,
                is_causal=block.mask is None,
                enable_gqa=gqa,
            )
        )
    return results[0] if len(results) == 1 else torch.cat(results, dim=2)


def _cuts(begin: int, end: int, window: int | None) -> Sequence[int]:
    """Where the blocks of one document begin: it is one, unless a window hides much of it."""
    return [begin] if window is None or window >= end - begin else range(begin, end, QUERIES)


def _mask(length: int, past: int, documents: Sequence[int], window: int | None) -> Tensor:
    """(length, past + length) bool; ``documents``: where they begin, counted from the first query."""
    seen = torch.ones(length, past + length, dtype=torch.bool).tril_(past)
    if window is not None:
        seen.triu_(past - window + 1)
    for begin in documents:
        seen[max(begin, 0) :, : max(begin + past, 0)] = False
    return seen


def _with_past(pieces: Sequence[Tensor], index: int, past: int) -> Tensor:
    """Piece ``index`` with the ``past`` positions before it."""
    found = [pieces[index]]
    while past > 0:
        index -= 1
        piece = pieces[index]
        take = min(past, piece.shape[2])
        found.append(piece if take == piece.shape[2] else piece[:, :, piece.shape[2] - take :])
        past -= take
    return found[0] if len(found) == 1 else torch.cat(found[::-1], dim=2)
