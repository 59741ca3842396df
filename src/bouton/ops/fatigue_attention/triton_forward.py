"""The forward pass in two kernels: the state before every block of queries, then the read-out block by block.

:func:`advance` has one program per block of keys, which walks along the queries with its calcium and pools and leaves
them at regular distances. With those at hand every block of queries is independent, and :func:`read` is a
FlashAttention (Dao 2023) without a running maximum: logits are bounded. The tiles of :func:`advance` are flat and wide,
so that a thread holds whole columns and runs through the recurrences of a key by itself.
"""

from __future__ import annotations

import triton
import triton.language as tl

from bouton.ops.fatigue_attention.triton_synapse import (
    AGE,
    ALPHA,
    CONSTANTS,
    EPS,
    LAM,
    R_MAX,
    RECOVERY,
    RHO_C,
    RHO_R,
    calcium_trail,
    exp2,
    is_for,
    log2,
    pool_after,
    pool_trail,
    product,
    release,
    row_of,
    spikes,
    strength,
    tile_of,
)


@triton.jit
def advance(
    q,
    k,
    table,
    calcium_before,
    pool_before,
    segments_q,
    segments_k,
    boundaries,  # (B * Hq, spans, 2, Tk)
    calcium_out,
    pool_out,
    stride_qb,
    stride_qh,
    stride_qt,
    stride_kb,
    stride_kh,
    stride_kt,
    tq,
    tk,
    heads,
    window,
    scale,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BD: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    SPAN: tl.constexpr,  # queries from one stored state to the next
    BLOCK: tl.constexpr,  # queries of a program of `read`, which starts from a stored state: a multiple of SPAN
    MINIMUM: tl.constexpr,
    AGED: tl.constexpr,
    WINDOW: tl.constexpr,
    SEGMENTS: tl.constexpr,
    TERMS: tl.constexpr,
    GENERAL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One block of keys along all queries."""
    key_start = tl.program_id(0) * BN
    which = tl.program_id(1).to(tl.int64)
    batch, head = which // heads, which % heads
    row = table + head * CONSTANTS
    if not is_for(row, GENERAL):
        return
    old = tk - tq
    spans = tl.cdiv(tq, SPAN)
    keys = key_start + tl.arange(0, BN)
    rows = tl.arange(0, BM)
    depth = tl.arange(0, BD)
    here = keys < tk
    EVEN: tl.constexpr = D == BD
    TILES: tl.constexpr = SPAN // BM
    rho_c, alpha = tl.load(row + RHO_C), tl.load(row + ALPHA)
    rho_r, recovery, r_max = tl.load(row + RHO_R), tl.load(row + RECOVERY), tl.load(row + R_MAX)

    calcium = tl.load(calcium_before + which * tk + keys, mask=here, other=0.0)
    pool = tl.load(pool_before + which * tk + keys, mask=here, other=0.0)
    of_keys = keys
    if SEGMENTS:
        of_keys = tl.load(segments_k + batch * tk + keys, mask=here, other=0)
    k_tile = tl.trans(tile_of(k + batch * stride_kb + (head // GROUP) * stride_kh, keys, stride_kt, tk, depth, D, EVEN))
    q_base = q + batch * stride_qb + head * stride_qh
    trail_base = boundaries + which * spans * 2 * tk + keys

    first = tl.maximum(key_start - old, 0) // BLOCK * (BLOCK // SPAN)
    stop = spans
    if WINDOW:
        stop = tl.minimum(tl.cdiv(tl.maximum(key_start + BN - 1 + window - old, 0), SPAN), spans)
    for block in range(first * TILES, tl.minimum(stop * TILES, tl.cdiv(tq, BM))):
        if block % TILES == 0:
            tl.store(trail_base + block // TILES * 2 * tk, calcium, mask=here)
            tl.store(trail_base + (block // TILES * 2 + 1) * tk, pool, mask=here)
        start = block * BM
        q_tile = tile_of(q_base, start + rows, stride_qt, tq, depth, D, EVEN)
        scores = product(q_tile, k_tile, PRECISION=PRECISION)
        spike = spikes(
            scores, scale, key_start, keys, start, old, tq, window, of_keys, segments_q + batch * tq,
            BM, BN, WINDOW, SEGMENTS,
        )  # fmt: skip
        if AGED:
            p = tl.where(spike > 0, tl.load(row + AGE), 0.0)
        else:
            trail, _ = calcium_trail(spike, calcium, rows, rho_c, alpha)
            p, _, _, _ = release(spike, trail, row, TERMS, GENERAL)
        _, left = pool_trail(p, pool, rows, rho_r, recovery, MINIMUM)
        if not AGED:
            calcium = row_of(trail, rows, BM - 1)
        pool = pool_after(row_of(left, rows, BM - 1), rho_r, recovery, MINIMUM)
        if start + BM > tq:
            if not AGED:
                calcium = tl.sum(tl.where((rows == tq - 1 - start)[:, None], trail, 0.0), axis=0)
            last = tl.sum(tl.where((rows == tq - 1 - start)[:, None], left, 0.0), axis=0)
            pool = pool_after(last, rho_r, recovery, MINIMUM)

    if WINDOW and stop < spans:
        # No later query sees these keys: they rest.
        stop = tl.maximum(stop, first)
        tl.store(trail_base + stop * 2 * tk, calcium, mask=here)
        tl.store(trail_base + (stop * 2 + 1) * tk, pool, mask=here)
        idle = (tq - stop * SPAN).to(tl.float32)
        if not AGED:
            calcium = calcium * exp2(idle * log2(rho_c))
        pool = r_max + (pool - r_max) * exp2(idle * log2(rho_r))
    tl.store(calcium_out + which * tk + keys, calcium, mask=here)
    tl.store(pool_out + which * tk + keys, pool, mask=here)


@triton.jit
def read(
    q,
    k,
    v,
    table,
    segments_q,
    segments_k,
    boundaries,
    out,  # (B, Hq, Tq, D)
    total,  # (B, Hq, Tq): sum of n
    stride_qb,
    stride_qh,
    stride_qt,
    stride_kb,
    stride_kh,
    stride_kt,
    stride_vb,
    stride_vh,
    stride_vt,
    tq,
    tk,
    heads,
    window,
    scale,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BD: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    SPAN: tl.constexpr,
    MINIMUM: tl.constexpr,
    AGED: tl.constexpr,
    WINDOW: tl.constexpr,
    SEGMENTS: tl.constexpr,
    TERMS: tl.constexpr,
    GENERAL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One block of queries over the keys that it sees."""
    blocks = tl.cdiv(tq, BM)
    block = blocks - 1 - tl.program_id(0)  # the longest first
    which = tl.program_id(1).to(tl.int64)
    batch, head = which // heads, which % heads
    row = table + head * CONSTANTS
    if not is_for(row, GENERAL):
        return
    old = tk - tq
    start = block * BM
    rows = tl.arange(0, BM)
    depth = tl.arange(0, BD)
    EVEN: tl.constexpr = D == BD
    rho_c, alpha = tl.load(row + RHO_C), tl.load(row + ALPHA)
    rho_r, recovery = tl.load(row + RHO_R), tl.load(row + RECOVERY)
    eps, lam = tl.load(row + EPS), tl.load(row + LAM)

    q_tile = tile_of(q + batch * stride_qb + head * stride_qh, start + rows, stride_qt, tq, depth, D, EVEN)
    k_base = k + batch * stride_kb + (head // GROUP) * stride_kh
    v_base = v + batch * stride_vb + (head // GROUP) * stride_vh
    trail_base = boundaries + (which * tl.cdiv(tq, SPAN) + start // SPAN) * 2 * tk

    weighted = tl.zeros((BM, BD), tl.float32)
    # The sum of n by the tensor cores too: a sum along axis 1 would be made of shuffles.
    norms = tl.zeros((BM, 16), tl.float32)
    ones = tl.full((BN, 16), 1.0, v.dtype.element_ty)
    low = 0
    if WINDOW:
        low = tl.maximum(old + start - window + 1, 0) // BN
    high = tl.cdiv(tl.minimum(old + start + BM, tk), BN)
    for j in range(low, high):
        key_start = j * BN
        keys = key_start + tl.arange(0, BN)
        here = keys < tk
        k_tile = tile_of(k_base, keys, stride_kt, tk, depth, D, EVEN)
        scores = product(q_tile, tl.trans(k_tile), PRECISION=PRECISION)
        of_keys = keys
        if SEGMENTS:
            of_keys = tl.load(segments_k + batch * tk + keys, mask=here, other=0)
        spike = spikes(
            scores, scale, key_start, keys, start, old, tq, window, of_keys, segments_q + batch * tq,
            BM, BN, WINDOW, SEGMENTS,
        )  # fmt: skip
        if AGED:
            p = tl.where(spike > 0, tl.load(row + AGE), 0.0)
        else:
            calcium = tl.load(trail_base + keys, mask=here, other=0.0)
            trail, _ = calcium_trail(spike, calcium, rows, rho_c, alpha)
            p, _, _, _ = release(spike, trail, row, TERMS, GENERAL)
        pool = tl.load(trail_base + tk + keys, mask=here, other=0.0)
        released, _ = pool_trail(p, pool, rows, rho_r, recovery, MINIMUM)
        n = spike * strength(eps + released, lam, GENERAL)
        v_tile = tile_of(v_base, keys, stride_vt, tk, depth, D, EVEN)
        n = n.to(v_tile.dtype)
        weighted = product(n, v_tile, weighted, PRECISION=PRECISION)
        norms = product(n, ones, norms, PRECISION=PRECISION)

    norm = tl.max(norms, axis=1)  # all columns are equal
    norm = tl.where(norm == 0, 1.0, norm)  # a query that sees nothing reads zero
    result = weighted / norm[:, None]
    queries = start + rows
    inside = (queries < tq)[:, None] & (depth < D)[None, :]
    target = out + (which * tq + queries[:, None]) * D + depth[None, :]
    tl.store(target, result.to(out.dtype.element_ty), mask=inside)
    tl.store(total + which * tq + queries, norm, mask=queries < tq)
