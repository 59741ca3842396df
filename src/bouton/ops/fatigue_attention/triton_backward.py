"""The backward pass: one program per block of keys, which walks back along the queries with the adjoints of its state.

FlashAttention-2 (Dao 2023) with a state: every tile is recomputed from the state that the forward pass left at its
boundary, then both recurrences run in reverse. The gradient of the queries is added up by atomics, because the tile's
release would have to be computed a second time otherwise; so its last bits depend on the order of the programs. All
other gradients are sums in a fixed order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from bouton.ops.fatigue_attention.triton_forward import blocks_of
from bouton.ops.fatigue_attention.triton_synapse import (
    AGE,
    ALPHA,
    CONSTANTS,
    EPS,
    HALF,
    K_D,
    KAPPA,
    LAM,
    LN_2,
    LOG2_E,
    R_MAX,
    RECOVERY,
    RHO_C,
    RHO_R,
    UNIT,
    B,
    S,
    affine,
    anchored,
    by_key,
    calcium_trail,
    exp2,
    is_for,
    log2,
    product,
    reciprocal,
    reciprocal_again,
    release,
    row_of,
    spikes,
    tile_of,
)

# Sums over the tiles of a program from which `finish` makes the gradients of the kinetics.
SUMS = tl.constexpr(16)
# The queries to which atomics add are in float32, whatever the inputs.


@triton.jit
def slopes(out, out_bar, total, share_bar, shift, rows, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr):
    """Per query out_bar / (sum of n) and its product with out; the slope of n_j is <share_bar, v_j> - shift."""
    row = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    depth = tl.arange(0, BD)
    inside = (row < rows)[:, None] & (depth < D)[None, :]
    at = row[:, None] * D + depth[None, :]
    x = tl.load(out + at, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(out_bar + at, mask=inside, other=0.0).to(tl.float32)
    y = y / tl.load(total + row, mask=row < rows, other=1.0)[:, None]
    y = y.to(share_bar.dtype.element_ty)
    tl.store(share_bar + at, y, mask=inside)
    tl.store(shift + row, tl.sum(x * y.to(tl.float32), axis=1), mask=row < rows)


@triton.jit
def backward(
    q,
    k,
    v,
    share_bar,  # (B, Hq, Tq, D)
    table,
    segments_q,
    segments_k,
    boundaries,
    shift,
    calcium_bar_out,
    pool_bar_out,
    q_bar,  # (B, Hq, Tq, D) float32, zero
    k_bar,  # (B, Hq, Tk, D)
    v_bar,
    calcium_bar_in,
    pool_bar_in,
    sums,  # (B, Hq, programs, SUMS)
    programs,
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
    FLAT: tl.constexpr,
    MINIMUM: tl.constexpr,
    AGED: tl.constexpr,
    WINDOW: tl.constexpr,
    SEGMENTS: tl.constexpr,
    TERMS: tl.constexpr,
    GENERAL: tl.constexpr,
    LEARNED: tl.constexpr,
    RUN: tl.constexpr,  # queries, and keys, that a thread holds in a row
    PRECISION: tl.constexpr,
):
    key_start = tl.program_id(0) * BN
    which = tl.program_id(1).to(tl.int64)
    batch, head = which // heads, which % heads
    row = table + head * CONSTANTS
    if not is_for(row, GENERAL):
        return
    old = tk - tq
    blocks = tl.cdiv(tq, BM)
    keys = key_start + tl.arange(0, BN)
    rows = tl.arange(0, BM)
    depth = tl.arange(0, BD)
    here = keys < tk
    last = (rows == BM - 1)[:, None]
    EVEN: tl.constexpr = D == BD
    rho_c, unit, half = tl.load(row + RHO_C), tl.load(row + UNIT), tl.load(row + HALF)
    rho_r, recovery, r_max = tl.load(row + RHO_R), tl.load(row + RECOVERY), tl.load(row + R_MAX)
    eps, lam, kappa = tl.load(row + EPS), tl.load(row + LAM), tl.load(row + KAPPA)
    steepness = tl.load(row + S) * half

    zeros = by_key(row, keys, FLAT)
    of_keys = keys
    if SEGMENTS:
        of_keys = tl.load(segments_k + batch * tk + keys, mask=here, other=0)
    k_tile = tile_of(k + batch * stride_kb + (head // GROUP) * stride_kh, keys, stride_kt, tk, depth, D, EVEN)
    v_tile = tile_of(v + batch * stride_vb + (head // GROUP) * stride_vh, keys, stride_vt, tk, depth, D, EVEN)
    q_base = q + batch * stride_qb + head * stride_qh
    trail_base = boundaries + which * blocks * 2 * tk + keys
    c_bar = tl.load(calcium_bar_out + which * tk + keys, mask=here, other=0.0) * unit
    r_bar = tl.load(pool_bar_out + which * tk + keys, mask=here, other=0.0)

    dk = tl.zeros((BN, BD), tl.float32)
    dv = tl.zeros((BN, BD), tl.float32)
    zero = tl.zeros((BM // RUN, BN // RUN), tl.float32)
    if LEARNED:
        sum_w, sum_log, sum_pool, sum_left = zero, zero, zero, zero
        sum_x, sum_s, sum_hill, sum_rest, sum_drive, sum_c = zero, zero, zero, zero, zero, zero
    base = sums + (which * programs + tl.program_id(0)) * SUMS

    first, stop = blocks_of(key_start, old, tq, window, BM, BN, WINDOW)
    if WINDOW and stop < blocks:
        idle = (tq - stop * BM).to(tl.float32)
        fade_r = exp2(idle * log2(rho_r))
        fade_c = exp2(idle * log2(rho_c))
        if LEARNED:
            pool = tl.load(trail_base + (stop * 2 + 1) * tk, mask=here, other=0.0)
            tl.store(base + 12, tl.sum(r_bar * (1 - fade_r), axis=0))
            rest_rho_r = r_bar * (pool - r_max) * idle * exp2((idle - 1) * log2(rho_r))
            tl.store(base + 10, tl.sum(rest_rho_r, axis=0))
            if not AGED:
                calcium = tl.load(trail_base + stop * 2 * tk, mask=here, other=0.0) / unit
                rest_rho_c = c_bar * calcium * idle * exp2((idle - 1) * log2(rho_c))
                tl.store(base + 11, tl.sum(rest_rho_c, axis=0))
        r_bar *= fade_r
        if not AGED:
            c_bar *= fade_c
    all_pools = tl.sum(r_bar, axis=0)

    for back in range(0, stop - first):
        block = stop - 1 - back
        start = block * BM
        queries = start + rows
        valid = queries < tq
        q_tile = tile_of(q_base, queries, stride_qt, tq, depth, D, EVEN)
        scores = product(q_tile, tl.trans(k_tile), PRECISION=PRECISION)
        spike = spikes(
            scores, scale, zeros, key_start, keys, start, old, tq, window, of_keys, segments_q + batch * tq,
            BM, BN, WINDOW, SEGMENTS,
        )  # fmt: skip
        if AGED:
            p = tl.where(spike > 0, tl.load(row + AGE), 0.0)
        else:
            calcium = tl.load(trail_base + block * 2 * tk, mask=here, other=0.0) / unit
            trail = calcium_trail(spike, calcium[None, :], rows, rho_c)
            gate, coupling = release(spike, trail, row, TERMS, GENERAL)
            p = gate * coupling
        pool = tl.load(trail_base + (block * 2 + 1) * tk, mask=here, other=0.0)
        released, left = pool_trail(p, pool, rows, rho_r, recovery, MINIMUM)
        reach = eps + released

        # The sum over values. `y` is the gradient of log n over reach, so that lam y is that of the release.
        bar_tile = tile_of(share_bar + which * tq * D, queries, D, tq, depth, D, EVEN)
        mean = tl.load(shift + which * tq + queries, mask=valid, other=0.0)
        if GENERAL:
            n = spike * exp2(lam * log2(reach))
            y = n * reciprocal(reach)
        else:
            n = spike * reach
            y = spike
        dv = product(tl.trans(n.to(bar_tile.dtype)), bar_tile, dv, PRECISION=PRECISION)
        slope = anchored(product(bar_tile, tl.trans(v_tile), PRECISION=PRECISION))
        y *= slope - mean[:, None]
        w_bar = y
        if GENERAL:
            w_bar = lam * y

        # The pool, backwards. Queries beyond the last pass its adjoint on.
        rho_row = tl.where(valid, rho_r, 1.0)[:, None]
        if MINIMUM:
            enough = left > tl.where(valid, 0.0, -1.0)[:, None]
            gain = tl.where(enough, rho_row, 0.0)
            drive = tl.where(enough, 0.0, w_bar)
        else:
            keep = tl.maximum(1 - p, 6e-8)
            gain = keep * rho_row
            drive = p * w_bar
        drive = tl.where(last, gain * r_bar[None, :] + drive, drive)
        _, adjoint = tl.associative_scan((gain, drive), 0, affine, reverse=True)
        r_bar = tl.sum(row_of(adjoint, rows, 0), axis=0)
        # The adjoint of the pool after a query, which P needs, follows from the one before it without a shift.
        if MINIMUM:
            p_bar = tl.where(enough, w_bar - adjoint, 0.0)
            passed = tl.maximum(left, 0.0) * adjoint
        else:
            over = left * reciprocal(keep)
            passed = adjoint - p * w_bar
            p_bar = over * (w_bar - passed * reciprocal(keep))
            passed *= over

        # From here on P and what it is made of are computed a second time: kept until here, they would not fit into
        # the registers.
        if AGED:
            reach = eps + released
        else:
            inverse_bound = reciprocal_again(spike + kappa)
            p = gate * (spike * inverse_bound)
            if MINIMUM:
                reach = eps + (p + tl.minimum(left, 0.0))
            else:
                reach = eps + released
        score_bar = y * reach
        if LEARNED:
            sum_w += folded(w_bar, BM, BN, RUN)
            sum_log += folded(score_bar * log2(reach), BM, BN, RUN)
            sum_pool += folded(tl.where(valid[:, None], adjoint, 0.0), BM, BN, RUN)
            sum_left += folded(tl.where(valid[:, None], passed, 0.0), BM, BN, RUN)

        if AGED:
            if LEARNED:
                sum_x += folded(tl.where(spike > 0, p_bar, 0.0), BM, BN, RUN)
        else:
            p_bar *= p
            rest = p_bar * kappa * inverse_bound
            score_bar += rest
            x_bar = p_bar - p_bar * gate
            hill = reciprocal_again(trail + half)
            # The calcium, backwards: its adjoint decays from one query to the one before, not after the last.
            drive = x_bar * hill * hill * steepness
            drive = tl.where(last, c_bar[None, :] + drive, drive)
            gain = tl.where(queries < tq - 1, rho_c, 1.0)[:, None] + tl.zeros_like(drive)
            _, adjoint = tl.associative_scan((gain, drive), 0, affine, reverse=True)
            c_bar = rho_c * tl.sum(row_of(adjoint, rows, 0), axis=0)
            score_bar += adjoint * (spike * reciprocal(1 + spike) * LOG2_E)
            if LEARNED:
                sensed = trail * hill
                sum_x += folded(x_bar, BM, BN, RUN)
                sum_s += folded(x_bar * sensed, BM, BN, RUN)
                sum_hill += folded(x_bar * sensed * hill, BM, BN, RUN)
                sum_rest += folded(rest, BM, BN, RUN)
                sum_drive += folded(adjoint * log2(1 + spike), BM, BN, RUN)
                sum_c += folded(tl.where(valid[:, None], adjoint * trail, 0.0), BM, BN, RUN)

        score_bar = score_bar.to(q_tile.dtype)
        dk = product(tl.trans(score_bar), q_tile, dk, PRECISION=PRECISION)
        dq = product(score_bar, k_tile, PRECISION=PRECISION)
        at = (which * tq + queries[:, None]) * D + depth[None, :]
        # `scale` has the log2(e) of the exponential.
        tl.atomic_add(q_bar + at, dq * (scale * LN_2), mask=valid[:, None] & (depth < D)[None, :], sem="relaxed")

    inside = here[:, None] & (depth < D)[None, :]
    at = (which * tk + keys[:, None]) * D + depth[None, :]
    tl.store(k_bar + at, (dk * (scale * LN_2)).to(k_bar.dtype.element_ty), mask=inside)
    tl.store(v_bar + at, dv.to(v_bar.dtype.element_ty), mask=inside)
    tl.store(calcium_bar_in + which * tk + keys, c_bar / unit, mask=here)
    tl.store(pool_bar_in + which * tk + keys, r_bar, mask=here)
    if LEARNED:
        # The adjoints after each query are those before it, shifted by one.
        all_pools += tl.sum(tl.sum(sum_pool, axis=1), axis=0) - tl.sum(r_bar, axis=0)
        tl.store(base + 0, tl.sum(tl.sum(sum_w, axis=1), axis=0))
        tl.store(base + 1, tl.sum(tl.sum(sum_log, axis=1), axis=0) * LN_2)
        tl.store(base + 2, all_pools)
        tl.store(base + 3, tl.sum(tl.sum(sum_left, axis=1), axis=0))
        tl.store(base + 4, tl.sum(tl.sum(sum_x, axis=1), axis=0))
        tl.store(base + 5, tl.sum(tl.sum(sum_s, axis=1), axis=0))
        tl.store(base + 6, tl.sum(tl.sum(sum_hill, axis=1), axis=0) / unit)
        tl.store(base + 7, tl.sum(tl.sum(sum_rest, axis=1), axis=0))
        driven = tl.sum(tl.sum(sum_drive, axis=1), axis=0)
        tl.store(base + 8, driven * LN_2 / unit)
        tl.store(base + 9, tl.sum(tl.sum(sum_c, axis=1), axis=0) - driven)


@triton.jit
def max_affine(w1, a1, b1, w2, a2, b2):
    """x -> max(w x + a, b), the older first."""
    return w1 * w2, w2 * a1 + a2, tl.maximum(w2 * b1 + a2, b2)


@triton.jit
def pool_trail(p, pool, rows, rho_r, recovery, MINIMUM: tl.constexpr):
    """W, and z = R - P (rule "min") or R (1 - P) (rule "mul"), of which the next pool is a function.

    The queries of a key are spread over threads here, where these inclusive scans cost less than :func:`.pools`.
    Rule "min": z_t = max(rho_r z_{t-1} + e_t, e_t) with e_t = recovery - P_t, except that z_0 = pool - P_0.
    """
    first = (rows == 0)[:, None]
    if MINIMUM:
        drive = recovery - p
        shift = tl.where(first, -1e30, drive)
        floor = tl.where(first, pool[None, :] - p, drive)
        _, _, left = tl.associative_scan((tl.zeros_like(p) + rho_r, shift, floor), 0, max_affine)
        released = p + tl.minimum(left, 0.0)
    else:
        keep = tl.maximum(1 - p, 6e-8)  # P = 1 would leave no trace of R
        drive = keep * tl.where(first, pool[None, :], recovery)
        _, left = tl.associative_scan((keep * rho_r, drive), 0, affine)
        released = p * left * reciprocal(keep)
    return released, left


@triton.jit
def folded(x, BM: tl.constexpr, BN: tl.constexpr, RUN: tl.constexpr):
    """Sums of x over squares of RUN queries by RUN keys, which are a thread's own: no shuffles."""
    return tl.sum(tl.sum(tl.reshape(x, (BM // RUN, RUN, BN // RUN, RUN)), axis=3), axis=1)


@triton.jit
def finish(sums, kinetics, kinetics_bar, batches, heads, programs, AGED: tl.constexpr, BP: tl.constexpr):
    """One head's gradients of the kinetics (10, heads) from the sums of its programs, added up in a fixed order."""
    head = tl.program_id(0)
    which = tl.arange(0, 16)
    total = tl.zeros((16,), tl.float64)
    for batch in range(batches):
        base = sums + (batch * heads + head).to(tl.int64) * programs * SUMS
        for start in range(0, programs, BP):
            program = start + tl.arange(0, BP)
            part = tl.load(
                base + program[:, None] * SUMS + which[None, :],
                mask=(program < programs)[:, None] & (which < 13)[None, :],
                other=0.0,
            )
            total += tl.sum(part.to(tl.float64), axis=0)
    total = total.to(tl.float32)
    s = tl.load(kinetics + S * heads + head)
    b = tl.load(kinetics + B * heads + head)
    kappa = tl.load(kinetics + KAPPA * heads + head)
    rho_c = tl.load(kinetics + RHO_C * heads + head)
    rho_r = tl.load(kinetics + RHO_R * heads + head)
    r_max = tl.load(kinetics + R_MAX * heads + head)
    # The sums over decayed states were taken after the decay; a decay of zero passes nothing on.
    over_c = tl.where(rho_c > 0, 1 / rho_c, 0.0)
    over_r = tl.where(rho_r > 0, 1 / rho_r, 0.0)
    pools = pick(total, which, 2)
    if AGED:
        gate = 1 / (1 + tl.exp(-b))
        seen = pick(total, which, 4) * gate / (1 + kappa)
        to_b = seen * (1 - gate)
        to_kappa = -seen / (1 + kappa)
    else:
        to_b = pick(total, which, 4)
        to_kappa = -pick(total, which, 7) / kappa
    tl.store(kinetics_bar + EPS * heads + head, pick(total, which, 0))
    tl.store(kinetics_bar + LAM * heads + head, pick(total, which, 1))
    tl.store(kinetics_bar + R_MAX * heads + head, (1 - rho_r) * pools + pick(total, which, 12))
    to_rho_r = pick(total, which, 3) * over_r - r_max * pools + pick(total, which, 10)
    tl.store(kinetics_bar + RHO_R * heads + head, to_rho_r)
    tl.store(kinetics_bar + B * heads + head, to_b)
    tl.store(kinetics_bar + KAPPA * heads + head, to_kappa)
    tl.store(kinetics_bar + S * heads + head, pick(total, which, 5))
    tl.store(kinetics_bar + K_D * heads + head, -s * pick(total, which, 6))
    tl.store(kinetics_bar + ALPHA * heads + head, pick(total, which, 8))
    tl.store(kinetics_bar + RHO_C * heads + head, pick(total, which, 9) * over_c + pick(total, which, 11))


@triton.jit
def pick(x, index, at):
    return tl.sum(tl.where(index == at, x, 0.0), axis=0)
