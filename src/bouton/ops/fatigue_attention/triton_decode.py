"""A few queries against many cached keys: the recurrence itself, every program on its own stretch of keys.

What the programs read is added up by :func:`combine` in the order of the keys.
"""

from __future__ import annotations

import triton
import triton.language as tl

from bouton.ops.fatigue_attention.triton_synapse import (
    AGE,
    CONSTANTS,
    EPS,
    LAM,
    RECOVERY,
    RHO_C,
    RHO_R,
    UNIT,
    exp2,
    log2,
    release,
    strength,
    tile_of,
)


@triton.jit
def decode(
    q,
    k,
    v,
    table,
    calcium_before,
    pool_before,
    segments_q,
    segments_k,
    calcium_out,
    pool_out,
    parts,  # (B * Hq, programs, Tq, D) float32
    totals,  # (B * Hq, programs, Tq)
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
    BN: tl.constexpr,
    MINIMUM: tl.constexpr,
    AGED: tl.constexpr,
    WINDOW: tl.constexpr,
    SEGMENTS: tl.constexpr,
):
    stretch = tl.program_id(0)
    which = tl.program_id(1).to(tl.int64)
    batch, head = which // heads, which % heads
    row = table + head * CONSTANTS
    keys = stretch * BN + tl.arange(0, BN)
    depth = tl.arange(0, BD)
    here = keys < tk
    EVEN: tl.constexpr = D == BD
    rho_c, unit = tl.load(row + RHO_C), tl.load(row + UNIT)
    rho_r, recovery = tl.load(row + RHO_R), tl.load(row + RECOVERY)
    eps, lam = tl.load(row + EPS), tl.load(row + LAM)
    calcium = tl.load(calcium_before + which * tk + keys, mask=here, other=0.0) / unit
    pool = tl.load(pool_before + which * tk + keys, mask=here, other=0.0)
    k_tile = tile_of(k + batch * stride_kb + (head // GROUP) * stride_kh, keys, stride_kt, tk, depth, D, EVEN)
    v_tile = tile_of(v + batch * stride_vb + (head // GROUP) * stride_vh, keys, stride_vt, tk, depth, D, EVEN)
    k_tile, v_tile = k_tile.to(tl.float32), v_tile.to(tl.float32)
    q_base = q + batch * stride_qb + head * stride_qh
    of_keys = keys
    if SEGMENTS:
        of_keys = tl.load(segments_k + batch * tk + keys, mask=here, other=0)

    for t in range(0, tq):
        query = tl.load(q_base + t * stride_qt + depth, mask=depth < D, other=0.0).to(tl.float32)
        score = tl.sum(k_tile * query[None, :], axis=1)
        position = tk - tq + t
        seen = keys <= position
        if WINDOW:
            seen = seen & (keys > position - window)
        if SEGMENTS:
            seen = seen & (of_keys == tl.load(segments_q + batch * tq + t))
        spike = tl.where(seen, exp2(score * scale), 0.0)
        if AGED:
            p = tl.where(seen, tl.load(row + AGE), 0.0)
        else:
            calcium = rho_c * calcium + log2(1 + spike)
            gate, coupling = release(spike, calcium, row, 0, True)
            p = gate * coupling
        if MINIMUM:
            released = tl.minimum(p, pool)
            pool = rho_r * tl.maximum(pool - p, 0.0) + recovery
        else:
            released = p * pool
            pool = rho_r * (pool - released) + recovery
        n = spike * strength(eps + released, lam, True)
        at = (which * tl.num_programs(0) + stretch) * tq + t
        tl.store(totals + at, tl.sum(n, axis=0))
        tl.store(parts + at * D + depth, tl.sum(n[:, None] * v_tile, axis=0), mask=depth < D)

    tl.store(calcium_out + which * tk + keys, calcium * unit, mask=here)
    tl.store(pool_out + which * tk + keys, pool, mask=here)


@triton.jit
def combine(parts, totals, out, tq, programs, D: tl.constexpr, BD: tl.constexpr, BP: tl.constexpr):
    """One query's output (B * Hq, Tq, D) from what the programs of :func:`decode` read."""
    t = tl.program_id(0)
    which = tl.program_id(1).to(tl.int64)
    depth = tl.arange(0, BD)
    read = tl.zeros((BD,), tl.float32)
    norm = tl.zeros((BP,), tl.float32)
    for start in range(0, programs, BP):
        program = start + tl.arange(0, BP)
        at = (which * programs + program) * tq + t
        inside = program < programs
        norm += tl.load(totals + at, mask=inside, other=0.0)
        pointers = parts + at[:, None] * D + depth[None, :]
        read += tl.sum(tl.load(pointers, mask=inside[:, None] & (depth < D)[None, :], other=0.0), axis=0)
    total = tl.sum(norm, axis=0)
    result = read / tl.where(total == 0, 1.0, total)
    tl.store(out + (which * tq + t) * D + depth, result.to(out.dtype.element_ty), mask=depth < D)
