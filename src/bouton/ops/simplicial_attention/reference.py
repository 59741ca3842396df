"""The definition of 2-simplicial attention: loops over queries and pairs of keys, one row and head at a time."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def simplicial_attention_reference(
    q: Tensor,
    k1: Tensor,
    v1: Tensor,
    k2: Tensor,
    v2: Tensor,
    w1: int,
    w2: int,
    *,
    starts: Tensor | None = None,
    bias1: Tensor | None = None,
    bias2: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Arguments and results as those of :func:`bouton.ops.simplicial_attention`, for a fresh sequence.

    For query t of a document that began at token s, over i in [max(s, t - w1 + 1), t] and j in [max(s, t - w2 + 1), t]:

        A_ij  = sum_d q_td k1_id k2_jd / sqrt(D) + bias1_ti + bias2_tj
        out_t = sum_ij softmax_ij(A) (v1_i * v2_j)                          the softmax is over all pairs together
    """
    batch, heads, tokens, dim = q.shape
    group = heads // k1.shape[1]
    out = torch.zeros_like(q)
    for b in range(batch):
        for h in range(heads):
            first, rows = 0, []
            for t in range(tokens):
                if starts is not None and bool(starts[b, t]):
                    first = t
                logits, values = [], []
                for i in range(max(first, t - w1 + 1), t + 1):
                    for j in range(max(first, t - w2 + 1), t + 1):
                        logit = (q[b, h, t] * k1[b, h // group, i] * k2[b, h // group, j]).sum() / math.sqrt(dim)
                        for bias, window, key in ((bias1, w1, i), (bias2, w2, j)):
                            if bias is not None:
                                logit = logit + bias.expand(batch, heads, -1, -1)[b, h, t, window - 1 - (t - key)]
                        logits.append(logit)
                        values.append(v1[b, h // group, i] * v2[b, h // group, j])
                weights = torch.stack(logits).softmax(0)
                rows.append((weights[:, None] * torch.stack(values)).sum(0))
            out = out.index_put((torch.tensor(b), torch.tensor(h)), torch.stack(rows))
    return out, _last(k1, v1, k2, v2, w1, w2, starts)


def _last(k1: Tensor, v1: Tensor, k2: Tensor, v2: Tensor, w1: int, w2: int, starts: Tensor | None) -> dict[str, Tensor]:
    """What later queries of the last document may still see, 0 where there is nothing."""
    batch, tokens = k1.shape[0], k1.shape[2]
    longest = max(w1, w2) - 1
    valid = torch.zeros(batch, longest, dtype=torch.bool)
    after = {}
    for name, x, kept in (
        ("keys1", k1, w1 - 1),
        ("values1", v1, w1 - 1),
        ("keys2", k2, w2 - 1),
        ("values2", v2, w2 - 1),
    ):
        after[name] = x.new_zeros(batch, x.shape[1], kept, x.shape[3])
        for b in range(batch):
            begun = [t for t in range(tokens) if starts is not None and bool(starts[b, t])]
            own = tokens - (begun[-1] if begun else 0)
            if own and longest:
                valid[b, max(0, longest - own) :] = True
            n = min(own, kept)
            after[name][b, :, kept - n :] = x[b, :, tokens - n :]
    return {**after, "valid": valid}
