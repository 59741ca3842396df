"""The backward pass: one program per block of keys, which walks back along the queries with the adjoints of its state.

FlashAttention-2 (Dao 2023) with a state: every tile is recomputed from the state that the forward pass left at its
boundary, then both recurrences run in reverse. The gradient of the queries is added up by atomics, because the tile's
release would have to be computed a second time otherwise; so its last bits depend on the order of the programs. All
other gradients are sums in a fixed order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from bouton.ops.fatigue_attention.triton_forward import spans_of
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
    affine_before,
    anchored,
    by_key,
    calcium_trail,
    columns,
    exp2,
    gate_of,
    is_for,
    kept,
    log2,
    pools,
    product,
    reciprocal,
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
    here = (keys < tk)[None, :]
    EVEN: tl.constexpr = D == BD
    rho_c, unit, half = tl.load(row + RHO_C), tl.load(row + UNIT), tl.load(row + HALF)
    rho_r, recovery, r_max = tl.load(row + RHO_R), tl.load(row + RECOVERY), tl.load(row + R_MAX)
    eps, lam, kappa = tl.load(row + EPS), tl.load(row + LAM), tl.load(row + KAPPA)
    steepness = tl.load(row + S) * half

    zeros = by_key(row, keys, FLAT)
    of_keys = keys
    if SEGMENTS:
        of_keys = tl.load(segments_k + batch * tk + keys, mask=keys < tk, other=0)
    k_tile = tile_of(k + batch * stride_kb + (head // GROUP) * stride_kh, keys, stride_kt, tk, depth, D, EVEN)
    v_tile = tile_of(v + batch * stride_vb + (head // GROUP) * stride_vh, keys, stride_vt, tk, depth, D, EVEN)
    q_base = q + batch * stride_qb + head * stride_qh
    bar_base = share_bar + which * tq * D
    trail_base = boundaries + which * blocks * 2 * tk
    state = which * tk + keys[None, :]
    c_bar = columns(calcium_bar_out + which * tk, keys, tk, FLAT) * unit
    r_bar = columns(pool_bar_out + which * tk, keys, tk, FLAT)

    dk = tl.zeros((BN, BD), tl.float32)
    dv = tl.zeros((BN, BD), tl.float32)
    if LEARNED:
        zero = summed(tl.zeros((BM, BN), tl.float32), BM, BN, RUN, FLAT)
        sum_w, sum_log, sum_pool, sum_left = zero, zero, zero, zero
        sum_x, sum_s, sum_hill, sum_rest, sum_drive, sum_c = zero, zero, zero, zero, zero, zero
    base = sums + (which * programs + tl.program_id(0)) * SUMS

    first, stop = spans_of(key_start, old, tq, window, BM, BN, WINDOW)
    idle = tq - stop * BM
    if WINDOW and idle > 0:
        fade_r = exp2(idle.to(tl.float32) * log2(rho_r))
        fade_c = exp2(idle.to(tl.float32) * log2(rho_c))
        if LEARNED:
            pool = columns(trail_base + (stop * 2 + 1) * tk, keys, tk, FLAT)
            tl.store(base + 12, tl.sum(tl.sum(r_bar * (1 - fade_r), axis=1), axis=0))
            once_less = (idle - 1).to(tl.float32)
            rest_rho_r = r_bar * (pool - r_max) * idle.to(tl.float32) * exp2(once_less * log2(rho_r))
            tl.store(base + 10, tl.sum(tl.sum(tl.where(here, rest_rho_r, 0.0), axis=1), axis=0))
            if not AGED:
                calcium = columns(trail_base + stop * 2 * tk, keys, tk, FLAT) / unit
                rest_rho_c = c_bar * calcium * idle.to(tl.float32) * exp2(once_less * log2(rho_c))
                tl.store(base + 11, tl.sum(tl.sum(rest_rho_c, axis=1), axis=0))
        r_bar *= fade_r
        if not AGED:
            c_bar *= fade_c

    for back in range(0, stop - first):
        block = stop - 1 - back
        start = block * BM
        queries = start + rows
        last = tl.minimum(tq - start, BM) - 1
        q_tile = tile_of(q_base, queries, stride_qt, tq, depth, D, EVEN)
        scores = tl.trans(product(k_tile, tl.trans(q_tile), PRECISION=PRECISION))
        spike = spikes(
            scores, scale, zeros, key_start, keys, start, old, tq, window, of_keys, segments_q + batch * tq,
            BM, BN, WINDOW, SEGMENTS,
        )  # fmt: skip
        if AGED:
            p = tl.where(spike > 0, tl.load(row + AGE), 0.0)
        else:
            calcium = columns(trail_base + block * 2 * tk, keys, tk, FLAT) / unit
            trail = calcium_trail(spike, calcium, rows, rho_c)
            # Here instructions are scarcer than special functions: a reciprocal for each denominator.
            hill = reciprocal(trail + half)
            gate = gate_of(half * hill, row, TERMS, GENERAL)
            coupling = spike * reciprocal(spike + kappa)
            p = gate * coupling
        pool = columns(trail_base + (block * 2 + 1) * tk, keys, tk, FLAT)
        if MINIMUM:
            raised = p + eps
            before, _ = pools(raised, pool + eps, rows, rho_r, recovery + eps, MINIMUM)
            reach = tl.minimum(raised, before)
        else:
            before, _ = pools(p, pool, rows, rho_r, recovery, MINIMUM)
            reach = p * before + eps

        # The sum over values. `y` is the gradient of log n over reach, so that lam y is that of the release.
        bar_tile = tile_of(bar_base, queries, D, tq, depth, D, EVEN)
        mean = tl.load(shift + which * tq + queries, mask=queries < tq, other=0.0)
        slope = product(v_tile, tl.trans(bar_tile), tl.zeros((BN, BM), tl.float32) - mean[None, :], PRECISION)
        slope = anchored(tl.trans(slope) + zeros)
        if GENERAL:
            n = spike * exp2(lam * log2(reach))
            y = n * reciprocal(reach) * slope
            w_bar = lam * y
        else:
            n = spike * reach
            y = spike * slope
            w_bar = y
        dv = product(tl.trans(n.to(bar_tile.dtype)), bar_tile, dv, PRECISION=PRECISION)
        score_bar = y * reach

        # The pool, backwards: its adjoint before each query, and the one after it.
        if MINIMUM:
            enough = raised < before
            gain = tl.where(enough, rho_r, 0.0)
            drive = tl.where(enough, 0.0, w_bar)
        else:
            gain = rho_r - rho_r * p
            drive = p * w_bar
        r_after, r_before = adjoints(gain, drive, r_bar, rows, last, BM)
        r_bar = row_of(r_before, rows, 0)
        if MINIMUM:
            p_bar = w_bar - r_before  # zero where the pool was too small
        else:
            p_bar = before * (w_bar - rho_r * r_after)
        if LEARNED:
            sum_w += summed(w_bar, BM, BN, RUN, FLAT)
            sum_log += summed(score_bar * log2(reach), BM, BN, RUN, FLAT)
            sum_pool += summed(r_after, BM, BN, RUN, FLAT)
            left = before - reach
            if not MINIMUM:
                left = before - p * before
            sum_left += summed(r_after * left, BM, BN, RUN, FLAT)

        if AGED:
            if LEARNED:
                sum_x += summed(tl.where(spike > 0, p_bar, 0.0), BM, BN, RUN, FLAT)
        else:
            p_bar *= p
            rest = p_bar - p_bar * coupling
            score_bar += rest
            x_bar = p_bar - p_bar * gate
            # The calcium, backwards: its adjoint decays from one query to the one before, not after the last.
            drive = entered(x_bar * (hill * hill) * steepness, c_bar, rows, last, BM)
            _, adjoint = tl.associative_scan((tl.zeros_like(drive) + rho_c, drive), 0, affine, reverse=True)
            c_bar = rho_c * row_of(adjoint, rows, 0)
            score_bar += adjoint * (spike * reciprocal(1 + spike) * LOG2_E)
            if LEARNED:
                sensed = trail * hill
                sum_x += summed(x_bar, BM, BN, RUN, FLAT)
                sum_s += summed(x_bar * sensed, BM, BN, RUN, FLAT)
                sum_hill += summed(x_bar * sensed * hill, BM, BN, RUN, FLAT)
                sum_rest += summed(rest, BM, BN, RUN, FLAT)
                sum_drive += summed(adjoint * log2(1 + spike), BM, BN, RUN, FLAT)
                sum_c += summed(adjoint * trail, BM, BN, RUN, FLAT)

        score_bar = score_bar.to(q_tile.dtype)
        dk = product(tl.trans(score_bar), q_tile, dk, PRECISION=PRECISION)
        dq = product(tl.trans(k_tile), tl.trans(score_bar), PRECISION=PRECISION)
        at = (which * tq + queries[None, :]) * D + depth[:, None]
        # `scale` has the log2(e) of the exponential.
        inside = (queries < tq)[None, :] & (depth < D)[:, None]
        tl.atomic_add(q_bar + at, dq * (scale * LN_2), mask=inside, sem="relaxed")

    inside = (keys < tk)[:, None] & (depth < D)[None, :]
    at = (which * tk + keys[:, None]) * D + depth[None, :]
    tl.store(k_bar + at, (dk * (scale * LN_2)).to(k_bar.dtype.element_ty), mask=inside)
    tl.store(v_bar + at, dv.to(v_bar.dtype.element_ty), mask=inside)
    tl.store(calcium_bar_in + state, c_bar / unit, mask=here)
    tl.store(pool_bar_in + state, r_bar, mask=here)
    if LEARNED:
        tl.store(base + 0, tl.sum(tl.sum(sum_w, axis=1), axis=0))
        tl.store(base + 1, tl.sum(tl.sum(sum_log, axis=1), axis=0) * LN_2)
        tl.store(base + 2, tl.sum(tl.sum(sum_pool, axis=1), axis=0))
        tl.store(base + 3, tl.sum(tl.sum(sum_left, axis=1), axis=0))
        tl.store(base + 4, tl.sum(tl.sum(sum_x, axis=1), axis=0))
        tl.store(base + 5, tl.sum(tl.sum(sum_s, axis=1), axis=0))
        tl.store(base + 6, tl.sum(tl.sum(sum_hill, axis=1), axis=0) / unit)
        tl.store(base + 7, tl.sum(tl.sum(sum_rest, axis=1), axis=0))
        driven = tl.sum(tl.sum(sum_drive, axis=1), axis=0)
        tl.store(base + 8, driven * LN_2 / unit)
        tl.store(base + 9, tl.sum(tl.sum(sum_c, axis=1), axis=0) - driven)


@triton.jit
def entered(x, more, rows, last, BM: tl.constexpr):
    """x, with ``more`` (1, keys) added to its row ``last``: usually a tile's last, which costs nothing to find."""
    if last < BM - 1:
        return tl.where((rows == last)[:, None], kept(x) + more, x)
    else:
        return tl.where((rows == BM - 1)[:, None], x + more, x)


@triton.jit
def adjoints(gain, drive, entering, rows, last, BM: tl.constexpr):
    """What x_t = gain_t x_{t+1} + drive_t is after and before each query, if it is ``entering`` behind row ``last``.

    Behind a tile that is cut off it enters as the row after the last, so that the rows behind that are zero.
    """
    end = (rows == BM - 1)[:, None]
    after = tl.where(end, entering, 0.0)
    if last < BM - 1:
        drive = tl.where((rows == last + 1)[:, None], entering, kept(drive))
        after = tl.zeros_like(drive)
    else:
        drive = tl.where(end, gain * entering + drive, drive)
    leaf = tl.zeros_like(drive) + 1
    none = tl.zeros_like(drive)
    _, before, _, _, after = tl.associative_scan((gain, drive, leaf, none, after), 0, affine_before, reverse=True)
    return after, before


@triton.jit
def summed(x, BM: tl.constexpr, BN: tl.constexpr, RUN: tl.constexpr, FLAT: tl.constexpr):
    """Sums of x over columns, or over squares of RUN queries by RUN keys: what a thread holds, so no shuffles."""
    if FLAT:
        return tl.sum(x, axis=0, keep_dims=True)
    else:
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
    # The sum over decayed calcium was taken after the decay; a decay of zero passes nothing on.
    over_c = tl.where(rho_c > 0, 1 / rho_c, 0.0)
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
    to_rho_r = pick(total, which, 3) - r_max * pools + pick(total, which, 10)
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
