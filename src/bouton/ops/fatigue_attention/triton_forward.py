"""The forward pass: one program per block of keys, which walks along the queries with its calcium and pools.

Every pair is computed once. Keys, values and state stay where they are; what comes along are the queries, and what is
left behind is the part of each output that the block's values contribute. :func:`gather` adds these parts up in the
order of the keys, so results do not depend on the order in which programs run. There is no running maximum as in
FlashAttention (Dao 2023): logits are bounded.
"""

from __future__ import annotations

import triton
import triton.language as tl

from bouton.ops.fatigue_attention.triton_synapse import (
    AGE,
    CONSTANTS,
    EPS,
    LAM,
    R_MAX,
    RECOVERY,
    RHO_C,
    RHO_R,
    UNIT,
    by_key,
    calcium_trail,
    columns,
    exp2,
    is_for,
    log2,
    pools,
    product,
    release,
    row_of,
    spikes,
    strength,
    tile_of,
)


@triton.jit
def blocks_of(key_start, old, tq, window, BM: tl.constexpr, BN: tl.constexpr, WINDOW: tl.constexpr):
    """The blocks of ``BM`` queries that see one of ``BN`` keys: the first, and the one behind the last."""
    first = tl.maximum(key_start - old, 0) // BM
    stop = tl.cdiv(tq, BM)
    if WINDOW:
        stop = tl.minimum(tl.cdiv(tl.maximum(key_start + BN - 1 + window - old, 0), BM), stop)
    return first, tl.maximum(stop, first)


@triton.jit
def advance(
    q,
    k,
    v,
    table,
    calcium_before,
    pool_before,
    segments_q,
    segments_k,
    boundaries,  # (B * Hq, spans, 2, Tk): the state before each span of queries, for the backward pass
    parts,  # (B * Hq, slots, Tq, D)
    totals,  # (B * Hq, slots, Tq)
    calcium_out,
    pool_out,
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
    slots,  # blocks of keys that a block of queries can see: those of one slot do not meet
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BD: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    SPAN: tl.constexpr,  # queries from one stored state to the next; BM is a multiple of it
    SAVE: tl.constexpr,
    FLAT: tl.constexpr,  # a thread holds whole columns of a tile
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
    keys = key_start + tl.arange(0, BN)
    rows = tl.arange(0, BM)
    depth = tl.arange(0, BD)
    here = (keys < tk)[None, :]
    EVEN: tl.constexpr = D == BD
    SPANS: tl.constexpr = BM // SPAN
    rho_c, unit = tl.load(row + RHO_C), tl.load(row + UNIT)
    rho_r, recovery, r_max = tl.load(row + RHO_R), tl.load(row + RECOVERY), tl.load(row + R_MAX)
    eps, lam = tl.load(row + EPS), tl.load(row + LAM)

    state = which * tk + keys[None, :]
    calcium = columns(calcium_before + which * tk, keys, tk, FLAT) / unit
    pool = columns(pool_before + which * tk, keys, tk, FLAT)
    zeros = by_key(row, keys, FLAT)
    of_keys = keys
    if SEGMENTS:
        of_keys = tl.load(segments_k + batch * tk + keys, mask=keys < tk, other=0)
    k_tile = tile_of(k + batch * stride_kb + (head // GROUP) * stride_kh, keys, stride_kt, tk, depth, D, EVEN)
    v_tile = tile_of(v + batch * stride_vb + (head // GROUP) * stride_vh, keys, stride_vt, tk, depth, D, EVEN)
    v_tile = tl.trans(v_tile)
    ones = tl.full((BN, 16), 1.0, v.dtype.element_ty)
    q_base = q + batch * stride_qb + head * stride_qh
    trail_base = boundaries + which * tl.cdiv(tq, SPAN) * 2 * tk + keys[None, :]
    total_base = totals + (which * slots + tl.program_id(0) % slots) * tq
    part_base = parts + (which * slots + tl.program_id(0) % slots) * tq * D

    first, stop = blocks_of(key_start, old, tq, window, BM, BN, WINDOW)
    for block in range(first, stop):
        if SAVE:
            tl.store(trail_base + block * SPANS * 2 * tk, calcium * unit, mask=here)
            tl.store(trail_base + (block * SPANS * 2 + 1) * tk, pool, mask=here)
        start = block * BM
        queries = start + rows
        q_tile = tile_of(q_base, queries, stride_qt, tq, depth, D, EVEN)
        # With the keys along the first axis the tensor cores of Hopper can take a whole tile at once.
        scores = tl.trans(product(k_tile, tl.trans(q_tile), PRECISION=PRECISION))
        spike = spikes(
            scores, scale, zeros, key_start, keys, start, old, tq, window, of_keys, segments_q + batch * tq,
            BM, BN, WINDOW, SEGMENTS,
        )  # fmt: skip
        if AGED:
            p = tl.where(spike > 0, tl.load(row + AGE), 0.0)
        else:
            trail = calcium_trail(spike, calcium, rows, rho_c)
            gate, coupling = release(spike, trail, row, TERMS, GENERAL)
            p = gate * coupling
        if MINIMUM:
            # Everything eps higher, which joins the last product: reach = eps + min(P, R).
            p += eps
            before, after = pools(p, pool + eps, rows, rho_r, recovery + eps, MINIMUM)
            reach = tl.minimum(p, before)
            after -= eps
        else:
            before, after = pools(p, pool, rows, rho_r, recovery, MINIMUM)
            reach = p * before + eps
        if SAVE:
            for i in tl.static_range(1, SPANS):
                inside = here & (tl.zeros_like(keys)[None, :] + start + i * SPAN < tq)
                if not AGED:
                    passed = row_of(trail, rows, i * SPAN - 1) * unit
                    tl.store(trail_base + (block * SPANS + i) * 2 * tk, passed, mask=inside)
                tl.store(
                    trail_base + ((block * SPANS + i) * 2 + 1) * tk, row_of(after, rows, i * SPAN - 1), mask=inside
                )
        n = (spike * strength(reach, lam, GENERAL)).to(v_tile.dtype)
        part = product(v_tile, tl.trans(n), PRECISION=PRECISION)
        # The sum of n by the tensor cores too: a sum along axis 1 would be made of shuffles.
        total = tl.max(product(n, ones, PRECISION=PRECISION), axis=1)  # all columns are equal
        target = part_base + queries[None, :] * D + depth[:, None]
        tl.store(target, part.to(parts.dtype.element_ty), mask=(queries < tq)[None, :] & (depth < D)[:, None])
        tl.store(total_base + queries, total, mask=queries < tq)
        # The last block of queries may be cut off; nothing happens to a key behind the last query.
        last = tl.minimum(tq - start, BM) - 1
        if last < BM - 1:
            pool = row_of(after, rows, last)
            if not AGED:
                calcium = row_of(trail, rows, last)
        else:
            pool = row_of(after, rows, BM - 1)
            if not AGED:
                calcium = row_of(trail, rows, BM - 1)

    idle = tq - stop * BM
    if WINDOW and idle > 0:
        # No later query sees these keys: they rest.
        if SAVE:
            tl.store(trail_base + stop * SPANS * 2 * tk, calcium * unit, mask=here)
            tl.store(trail_base + (stop * SPANS * 2 + 1) * tk, pool, mask=here)
        if not AGED:
            calcium = calcium * exp2(idle.to(tl.float32) * log2(rho_c))
        pool = r_max + (pool - r_max) * exp2(idle.to(tl.float32) * log2(rho_r))
    tl.store(calcium_out + state, calcium * unit, mask=here)
    tl.store(pool_out + state, pool, mask=here)


@triton.jit
def gather(
    parts,
    totals,
    out,  # (B, Hq, Tq, D)
    total,  # (B, Hq, Tq): sum of n
    tq,
    tk,
    window,
    slots,
    D: tl.constexpr,
    BD: tl.constexpr,
    QUERIES: tl.constexpr,  # and keys of a tile of `advance`
    KEYS: tl.constexpr,
    ROWS: tl.constexpr,
    WINDOW: tl.constexpr,
):
    """What the blocks of keys contributed to ``ROWS`` queries, added up."""
    start = tl.program_id(0) * ROWS
    which = tl.program_id(1).to(tl.int64)
    old = tk - tq
    queries = start + tl.arange(0, ROWS)
    depth = tl.arange(0, BD)
    weighted = tl.zeros((ROWS, BD), tl.float32)
    norm = tl.zeros((ROWS,), tl.float32)
    low = 0
    if WINDOW:
        low = tl.maximum(old + start - window + 1, 0) // KEYS
    for j in range(low, tl.cdiv(tl.minimum(old + start + ROWS, tk), KEYS)):
        # A block of keys has left something for the queries that its program came along.
        first, stop = blocks_of(j * KEYS, old, tq, window, QUERIES, KEYS, WINDOW)
        valid = (queries >= first * QUERIES) & (queries < tl.minimum(stop * QUERIES, tq))
        base = (which * slots + j % slots) * tq
        norm += tl.load(totals + base + queries, mask=valid, other=0.0)
        pointers = parts + (base + queries)[:, None] * D + depth[None, :]
        weighted += tl.load(pointers, mask=valid[:, None] & (depth < D)[None, :], other=0.0).to(tl.float32)
    norm = tl.where(norm == 0, 1.0, norm)  # a query that sees nothing reads zero
    inside = (queries < tq)[:, None] & (depth < D)[None, :]
    target = out + (which * tq + queries[:, None]) * D + depth[None, :]
    tl.store(target, (weighted / norm[:, None]).to(out.dtype.element_ty), mask=inside)
    tl.store(total + which * tq + queries, norm, mask=queries < tq)
