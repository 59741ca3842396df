"""Plain causal attention by kernels like those of fatigue attention, with the fatigue left out: their peer in timings.

No running maximum, as there: logits are bounded. The gradient of the queries is added up by atomics, as there.
"""

from __future__ import annotations

import triton
import triton.language as tl

from bouton.ops.fatigue_attention.triton_synapse import LN_2, exp2, product, tile_of


@triton.jit
def spikes_alone(scores, scale, key_start, query_start, old, tq, BM: tl.constexpr, BN: tl.constexpr):
    """E of a tile; only tiles on an edge need a mask."""
    spike = exp2(scores * scale)
    if (key_start + BN - 1 > old + query_start) | (query_start + BM > tq):
        keys = key_start + tl.arange(0, BN)
        queries = query_start + tl.arange(0, BM)
        seen = (keys[None, :] <= old + queries[:, None]) & (queries < tq)[:, None]
        spike = tl.where(seen, spike, 0.0)
    return spike


@triton.jit
def plain_forward(
    q,
    k,
    v,
    out,  # (B, H, Tq, D)
    total,  # (B, H, Tq): sum of E
    tq,
    tk,
    scale,  # log2(e) / sqrt(D)
    D: tl.constexpr,
    BD: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One block of queries over the keys that it sees; q, k, v are contiguous."""
    blocks = tl.cdiv(tq, BM)
    start = (blocks - 1 - tl.program_id(0)) * BM  # the longest first
    which = tl.program_id(1).to(tl.int64)
    old = tk - tq
    queries = start + tl.arange(0, BM)
    depth = tl.arange(0, BD)
    EVEN: tl.constexpr = D == BD
    q_tile = tile_of(q + which * tq * D, queries, D, tq, depth, D, EVEN)
    weighted = tl.zeros((BM, BD), tl.float32)
    norms = tl.zeros((BM, 16), tl.float32)
    ones = tl.full((BN, 16), 1.0, v.dtype.element_ty)
    for j in range(0, tl.cdiv(tl.minimum(old + start + BM, tk), BN)):
        keys = j * BN + tl.arange(0, BN)
        k_tile = tile_of(k + which * tk * D, keys, D, tk, depth, D, EVEN)
        scores = product(q_tile, tl.trans(k_tile), PRECISION=PRECISION)
        spike = spikes_alone(scores, scale, j * BN, start, old, tq, BM, BN)
        v_tile = tile_of(v + which * tk * D, keys, D, tk, depth, D, EVEN)
        spike = spike.to(v_tile.dtype)
        weighted = product(spike, v_tile, weighted, PRECISION=PRECISION)
        norms = product(spike, ones, norms, PRECISION=PRECISION)
    norm = tl.max(norms, axis=1)  # all columns are equal
    norm = tl.where(norm == 0, 1.0, norm)
    at = (which * tq + queries[:, None]) * D + depth[None, :]
    inside = (queries < tq)[:, None] & (depth < D)[None, :]
    tl.store(out + at, (weighted / norm[:, None]).to(out.dtype.element_ty), mask=inside)
    tl.store(total + which * tq + queries, norm, mask=queries < tq)


@triton.jit
def plain_backward(
    q,
    k,
    v,
    share_bar,  # out_bar / (sum of E)
    shift,
    q_bar,  # float32, zero
    k_bar,
    v_bar,
    tq,
    tk,
    scale,
    D: tl.constexpr,
    BD: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One block of keys along the queries that see it."""
    key_start = tl.program_id(0) * BN
    which = tl.program_id(1).to(tl.int64)
    old = tk - tq
    keys = key_start + tl.arange(0, BN)
    depth = tl.arange(0, BD)
    EVEN: tl.constexpr = D == BD
    k_tile = tile_of(k + which * tk * D, keys, D, tk, depth, D, EVEN)
    v_tile = tile_of(v + which * tk * D, keys, D, tk, depth, D, EVEN)
    dk = tl.zeros((BN, BD), tl.float32)
    dv = tl.zeros((BN, BD), tl.float32)
    for block in range(tl.maximum(key_start - old, 0) // BM, tl.cdiv(tq, BM)):
        queries = block * BM + tl.arange(0, BM)
        valid = queries < tq
        q_tile = tile_of(q + which * tq * D, queries, D, tq, depth, D, EVEN)
        bar_tile = tile_of(share_bar + which * tq * D, queries, D, tq, depth, D, EVEN)
        mean = tl.load(shift + which * tq + queries, mask=valid, other=0.0)
        scores = product(q_tile, tl.trans(k_tile), PRECISION=PRECISION)
        spike = spikes_alone(scores, scale, key_start, block * BM, old, tq, BM, BN)
        dv = product(tl.trans(spike.to(bar_tile.dtype)), bar_tile, dv, PRECISION=PRECISION)
        slope = product(bar_tile, tl.trans(v_tile), PRECISION=PRECISION)
        score_bar = (spike * (slope - mean[:, None])).to(q_tile.dtype)
        dk = product(tl.trans(score_bar), q_tile, dk, PRECISION=PRECISION)
        dq = product(score_bar, k_tile, PRECISION=PRECISION)
        at = (which * tq + queries[:, None]) * D + depth[None, :]
        tl.atomic_add(q_bar + at, dq * (scale * LN_2), mask=valid[:, None] & (depth < D)[None, :], sem="relaxed")
    at = (which * tk + keys[:, None]) * D + depth[None, :]
    inside = (keys < tk)[:, None] & (depth < D)[None, :]
    tl.store(k_bar + at, (dk * (scale * LN_2)).to(k_bar.dtype.element_ty), mask=inside)
    tl.store(v_bar + at, dv.to(v_bar.dtype.element_ty), mask=inside)
