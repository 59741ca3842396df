"""The synapses of one tile in Triton: queries on axis 0, keys on axis 1.

Both recurrences are scans along axis 0. What they cost is settled by how a tile lies in the registers: as the tensor
cores leave it, the queries of a key are spread over the lanes of a warp, and every step of a scan is a shuffle. Where a
tile is wide enough (32 keys or more per warp), :func:`spikes` moves the scores once, through shared memory, to a layout
in which a thread holds all queries of a key; it then walks through the recurrences by itself, as a loop would. Whatever
the layout, the scans are associative and right. The state of the keys, (1, keys), enters them in their first row.

Calcium is counted in units of alpha ln 2, in which a spike adds log2(1 + E). A pair that is not seen has E = 0, after
which no equation needs a case; so a logit below -87, whose exponential is zero in float32, counts as not seen.
"""

from __future__ import annotations

import math

import numpy as np
import triton
import triton.language as tl
from triton import knobs

# Triton decides when a kernel is defined whether it will be compiled or interpreted; the interpreter knows no assembly.
INTERPRETED: bool = bool(knobs.runtime.interpret)
COMPILED = tl.constexpr(not INTERPRETED)
LOG2_E = tl.constexpr(math.log2(math.e))
LN_2 = tl.constexpr(math.log(2))

# Rows of the table of constants, one column block of CONSTANTS floats per head (written by `prepare`).
CONSTANTS = tl.constexpr(32)
RHO_C = tl.constexpr(0)
ALPHA = tl.constexpr(1)
K_D = tl.constexpr(2)
S = tl.constexpr(3)
B = tl.constexpr(4)
KAPPA = tl.constexpr(5)
RHO_R = tl.constexpr(6)
R_MAX = tl.constexpr(7)
LAM = tl.constexpr(8)
EPS = tl.constexpr(9)
RECOVERY = tl.constexpr(10)
AGE = tl.constexpr(11)  # P of a key that is seen, in release "age"
STEEP = tl.constexpr(12)  # 1 where the polynomial is not good enough for the gate
GENERAL_HEAD = tl.constexpr(13)  # 1 where it is not, or the exponent is not 1
UNIT = tl.constexpr(14)  # of calcium: alpha ln 2
HALF = tl.constexpr(15)  # K_d in that unit: the calcium at which the sensor is half full
GATE = tl.constexpr(16)  # up to 15 coefficients
ZERO = tl.constexpr(31)

MOST_TERMS = 15
CHECKS = 64


def gate_matrices(terms: int) -> np.ndarray:
    """What `prepare` needs to fit the gate: (18, 64) float64.

    Rows 0 to 15 hold in their first columns the matrix from values at Chebyshev nodes of [-1/2, 1/2] to
    coefficients of powers; then the nodes, and the points at which the fit is checked.
    """
    nodes = 0.5 * np.cos(np.pi * (np.arange(terms) + 0.5) / terms)
    table = np.zeros((18, CHECKS))
    table[:terms, :terms] = np.linalg.inv(np.vander(nodes, increasing=True))
    table[16, :terms] = nodes
    table[17] = np.linspace(-0.5, 0.5, CHECKS)
    return table


@triton.jit
def prepare(kinetics, matrices, table, heads, TERMS: tl.constexpr, TOLERANCE: tl.constexpr):
    """One head's constants from kinetics (10, heads) to ``table`` (heads, CONSTANTS), with the gate's polynomial."""
    head = tl.program_id(0)
    row = table + head * CONSTANTS
    for i in tl.static_range(10):
        tl.store(row + i, tl.load(kinetics + i * heads + head))
    kappa = tl.load(kinetics + KAPPA * heads + head)
    rho_r = tl.load(kinetics + RHO_R * heads + head)
    r_max = tl.load(kinetics + R_MAX * heads + head)
    s = tl.load(kinetics + S * heads + head).to(tl.float64)
    b = tl.load(kinetics + B * heads + head).to(tl.float64)
    tl.store(row + RECOVERY, (1 - rho_r) * r_max)
    # A head without calcium has a tiny unit, in which nothing overflows.
    unit = tl.maximum(tl.load(kinetics + ALPHA * heads + head) * LN_2, 1e-12)
    tl.store(row + UNIT, unit)
    tl.store(row + HALF, tl.load(kinetics + K_D * heads + head) / unit)
    tl.store(row + AGE, (1 / (1 + tl.exp(-b)) / (1 + kappa)).to(tl.float32))

    term = tl.arange(0, 16)
    node = tl.load(matrices + 16 * 64 + term)
    value = 1 / (1 + tl.exp(-(s * (node + 0.5) + b)))
    weight = tl.load(matrices + term[:, None] * 64 + term[None, :])
    coefficient = tl.sum(weight * value[None, :], axis=1).to(tl.float32)
    tl.store(row + GATE + term, coefficient)  # the last one, which is not used, is `ZERO`

    point = tl.load(matrices + 17 * 64 + tl.arange(0, 64))
    exact = 1 / (1 + tl.exp(-(s * (point + 0.5) + b)))
    fitted = tl.zeros((64,), tl.float64)
    for i in tl.static_range(TERMS):
        # A coefficient is picked out of the vector by a sum: registers have no index.
        c = tl.sum(tl.where(term == TERMS - 1 - i, coefficient, 0.0), axis=0)
        fitted = fitted * point + c.to(tl.float64)
    error = tl.max(tl.abs(fitted / exact - 1), axis=0)
    steep = tl.where(error <= TOLERANCE, 0.0, 1.0)  # also where the error is not a number
    tl.store(row + STEEP, steep)
    lam = tl.load(kinetics + LAM * heads + head)
    tl.store(row + GENERAL_HEAD, tl.where(lam == 1, steep, 1.0))


@triton.jit
def is_for(row, GENERAL: tl.constexpr):
    """Whether a head belongs to the general kernels or to the fast ones.

    Both are launched, and each passes over the other's heads: the constants are known to the device alone. In one
    kernel the general branches would take registers from the fast ones.
    """
    return (tl.load(row + GENERAL_HEAD) > 0) == GENERAL


@triton.jit
def product(a, b, plus=None, PRECISION: tl.constexpr = "tf32"):
    """a @ b + plus in float32. The interpreter keeps bfloat16 as bits, which it would multiply as integers."""
    if COMPILED:
        return tl.dot(a, b, plus, input_precision=PRECISION)
    else:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), plus)


@triton.jit
def exp2(x):
    if COMPILED:
        return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)
    else:
        return tl.exp2(x)


@triton.jit
def log2(x):
    if COMPILED:
        return tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)
    else:
        return tl.log2(x)


@triton.jit
def reciprocal(x):
    if COMPILED:
        return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)
    else:
        return 1.0 / x


@triton.jit
def reciprocal_again(x):
    """The compiler does not merge this with an earlier :func:`reciprocal`, whose result would have to be kept."""
    if COMPILED:
        return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, False, 1)
    else:
        return 1.0 / x


@triton.jit
def affine(w1, x1, w2, x2):
    """x -> w x + a, the older first."""
    return w1 * w2, w2 * x1 + x2


@triton.jit
def affine_before(w1, x1, leaf1, v1, y1, w2, x2, leaf2, v2, y2):
    """:func:`affine`, and with (v, y) the same over all rows but the last: what the last row starts from.

    A single row, a ``leaf``, is preceded by nothing, and what it is given is passed through. Where a thread walks
    through a column, the second argument is always a leaf, and all of this costs nothing.
    """
    single = leaf2 > 0
    v = tl.where(single, w1, v2 * w1)
    y = tl.where(single, x1, v2 * x1 + y2)
    return w1 * w2, w2 * x1 + x2, tl.zeros_like(leaf1), v, y


@triton.jit
def max_affine_before(w1, a1, b1, leaf1, v1, c1, d1, w2, a2, b2, leaf2, v2, c2, d2):
    """x -> max(w x + a, b), the older first, and with (v, c, d) the same over all rows but the last."""
    single = leaf2 > 0
    v = tl.where(single, w1, v2 * w1)
    c = tl.where(single, a1, v2 * a1 + c2)
    d = tl.where(single, b1, tl.maximum(v2 * b1 + c2, d2))
    return w1 * w2, w2 * a1 + a2, tl.maximum(w2 * b1 + a2, b2), tl.zeros_like(leaf1), v, c, d


@triton.jit
def newer(older, newer):
    return newer


@triton.jit
def anchored(x):
    """``x`` itself. A scan is the one operation that the compiler never leaves in the layout of a matrix product."""
    return tl.associative_scan(x, 0, newer)


@triton.jit
def kept(x):
    """``x`` itself, by an instruction that may not be executed unless it is reached: a branch remains a branch."""
    if COMPILED:
        return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=f,f", [x], tl.float32, False, 1)
    else:
        return x


@triton.jit
def row_of(x, rows, at):
    """x[at : at + 1], as a sum of integers: costs nothing where the compiler knows the rows of a register."""
    bits = tl.where((rows == at)[:, None], x.to(tl.int32, bitcast=True), 0)
    return tl.sum(bits, axis=0, keep_dims=True).to(tl.float32, bitcast=True)


@triton.jit
def visible(keys, positions, valid, segments_k, segments_q, window, WINDOW: tl.constexpr, SEGMENTS: tl.constexpr):
    """Which queries at ``positions`` see which keys: (queries, keys)."""
    seen = (keys[None, :] <= positions[:, None]) & valid[:, None]
    if WINDOW:
        seen = seen & (keys[None, :] > positions[:, None] - window)
    if SEGMENTS:
        seen = seen & (segments_k[None, :] == segments_q[:, None])
    return seen


@triton.jit
def columns(pointer, keys, limit, FLAT: tl.constexpr):
    """One number per key, (1, keys). In ``FLAT`` tiles they settle that a thread holds whole columns."""
    if FLAT:
        return tl.load(pointer + keys[None, :], mask=(keys < limit)[None, :], other=0.0)
    else:
        return tl.load(pointer + keys, mask=keys < limit, other=0.0)[None, :]


@triton.jit
def by_key(row, keys, FLAT: tl.constexpr):
    """Zeros (1, keys), loaded one key to a thread: what they are added to lies like that from then on."""
    if FLAT:
        return tl.load(row + ZERO + tl.zeros_like(keys)[None, :])
    else:
        return 0.0


@triton.jit
def spikes(
    scores,
    scale,  # log2(e) / sqrt(D)
    zeros,  # of `by_key`
    key_start,
    keys,
    query_start,
    old,
    tq,
    window,
    segments_k,
    segments_q,  # pointer to those of the sequence
    BM: tl.constexpr,
    BN: tl.constexpr,
    WINDOW: tl.constexpr,
    SEGMENTS: tl.constexpr,
):
    """E of a tile whose first query is ``query_start``."""
    spike = exp2(anchored(scores * scale + zeros))
    # Most tiles are seen as a whole, and then no mask is made.
    edge = (key_start + BN - 1 > old + query_start) | (query_start + BM > tq)
    if WINDOW:
        edge = edge | (key_start <= old + query_start + BM - 1 - window)
    if SEGMENTS:
        edge = True
    if edge:
        queries = query_start + tl.arange(0, BM)
        valid = queries < tq
        if SEGMENTS:
            of_queries = tl.load(segments_q + queries, mask=valid, other=0)
        else:
            of_queries = queries
        seen = visible(keys, old + queries, valid, segments_k, of_queries, window, WINDOW, SEGMENTS)
        spike = tl.where(seen, kept(spike), 0.0)
    return spike


@triton.jit
def gate_of(emptiness, row, TERMS: tl.constexpr, GENERAL: tl.constexpr):
    """sigmoid(s S + b), S = 1 - ``emptiness``: a polynomial in S - 1/2, or exact."""
    if GENERAL:
        gate = reciprocal(1 + exp2((tl.load(row + S) * (1 - emptiness) + tl.load(row + B)) * -LOG2_E))
    else:
        y = 0.5 - emptiness
        gate = tl.load(row + GATE + TERMS - 1) + tl.zeros_like(y)
        for i in tl.static_range(1, TERMS):
            gate = gate * y + tl.load(row + GATE + TERMS - 1 - i)
    return gate


@triton.jit
def calcium_trail(spike, calcium, rows, rho_c):
    """Calcium after each query."""
    drive = log2(1 + spike)
    drive = tl.where((rows == 0)[:, None], rho_c * calcium + drive, drive)
    _, trail = tl.associative_scan((tl.zeros_like(drive) + rho_c, drive), 0, affine)
    return trail


@triton.jit
def release(spike, trail, row, TERMS: tl.constexpr, GENERAL: tl.constexpr):
    """Gate, and coupling E / (E + kappa): P is their product."""
    # One reciprocal serves both saturations.
    bound = spike + tl.load(row + KAPPA)
    half = tl.load(row + HALF)
    sensed = trail + half
    both = reciprocal(bound * sensed)
    gate = gate_of(half * (bound * both), row, TERMS, GENERAL)
    return gate, spike * (sensed * both)


@triton.jit
def pools(p, pool, rows, rho_r, recovery, MINIMUM: tl.constexpr):
    """The pool before each query, and the one after it.

    Rule "min": R -> max(rho_r R + recovery - rho_r P, recovery); rule "mul": R -> rho_r (1 - P) R + recovery.
    """
    first = (rows == 0)[:, None]
    leaf = tl.full(p.shape, 1.0, tl.float32)
    none = tl.zeros_like(p)
    before = tl.where(first, pool, none)
    if MINIMUM:
        shift = recovery - rho_r * p
        floor = tl.where(first, tl.maximum(rho_r * pool + shift, recovery), recovery)
        shift = tl.where(first, -1e30, shift)
        _, _, after, _, _, _, before = tl.associative_scan(
            (none + rho_r, shift, floor, leaf, none, none, before), 0, max_affine_before
        )
    else:
        keep = rho_r - rho_r * p
        start = tl.where(first, keep * pool + recovery, recovery)
        _, after, _, _, before = tl.associative_scan((keep, start, leaf, none, before), 0, affine_before)
    return before, after


@triton.jit
def strength(reach, lam, GENERAL: tl.constexpr):
    """reach ** lam; fast heads have the exponent 1."""
    if GENERAL:
        return exp2(lam * log2(reach))
    else:
        return reach


@triton.jit
def tile_of(base, rows, stride, limit, depth, D: tl.constexpr, EVEN: tl.constexpr):
    """Rows of a matrix (limit, D) with unit stride along ``depth``; what lies outside is zero."""
    pointers = base + rows[:, None].to(tl.int64) * stride + depth[None, :]
    if EVEN:
        return tl.load(pointers, mask=(rows < limit)[:, None], other=0.0)
    else:
        return tl.load(pointers, mask=(rows < limit)[:, None] & (depth < D)[None, :], other=0.0)
