"""The synapses of one tile in Triton: queries on axis 0, keys on axis 1.

Both recurrences are scans along axis 0. What they cost is settled by how a tile lies in the registers: as the tensor
cores leave it, the queries of a key are spread over the lanes of a warp, and every step of a scan is a shuffle.
:func:`anchored` moves the scores once, through shared memory, to a layout in which a thread holds runs of queries, and
only their ends are passed on. The state before the tile enters the scans in their first row. A pair that is not seen
has E = 0, after which no equation needs a case; so a logit below -87, whose exponential is zero in float32, counts as
not seen.
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
GATE = tl.constexpr(16)

MOST_TERMS = 16
CHECKS = 64


def gate_matrices(terms: int) -> np.ndarray:
    """What `prepare` needs to fit the gate: (3 + terms + 1, 64) float64.

    Rows 0 to ``MOST_TERMS`` - 1 hold in their first columns the matrix from values at Chebyshev nodes of [-1/2, 1/2] to
    coefficients of powers; then the nodes, and the points at which the fit is checked.
    """
    nodes = 0.5 * np.cos(np.pi * (np.arange(terms) + 0.5) / terms)
    table = np.zeros((MOST_TERMS + 2, CHECKS))
    table[:terms, :terms] = np.linalg.inv(np.vander(nodes, increasing=True))
    table[MOST_TERMS, :terms] = nodes
    table[MOST_TERMS + 1] = np.linspace(-0.5, 0.5, CHECKS)
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
    tl.store(row + AGE, (1 / (1 + tl.exp(-b)) / (1 + kappa)).to(tl.float32))

    term = tl.arange(0, 16)
    node = tl.load(matrices + 16 * 64 + term)
    value = 1 / (1 + tl.exp(-(s * (node + 0.5) + b)))
    weight = tl.load(matrices + term[:, None] * 64 + term[None, :])
    coefficient = tl.sum(weight * value[None, :], axis=1).to(tl.float32)
    tl.store(row + GATE + term, coefficient)

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
def log2_again(x):
    """The compiler does not merge this with an earlier :func:`log2`, whose result would have to be kept until here."""
    if COMPILED:
        return tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, False, 1)
    else:
        return tl.log2(x)


@triton.jit
def reciprocal_again(x):
    if COMPILED:
        return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, False, 1)
    else:
        return 1.0 / x


@triton.jit
def affine(w1, x1, w2, x2):
    """x -> w x + a, the older first."""
    return w1 * w2, w2 * x1 + x2


@triton.jit
def max_affine(w1, a1, b1, w2, a2, b2):
    """x -> max(w x + a, b), the older first."""
    return w1 * w2, w2 * a1 + a2, tl.maximum(w2 * b1 + a2, b2)


@triton.jit
def newer(older, newer):
    return newer


@triton.jit
def anchored(x):
    """``x`` itself. A scan is the one operation that the compiler never leaves in the layout of a matrix product."""
    return tl.associative_scan(x, 0, newer)


@triton.jit
def row_of(x, rows, at):
    """x[at], as a sum of integers: costs nothing where the compiler knows that a register is not of row ``at``."""
    bits = tl.where((rows == at)[:, None], x.to(tl.int32, bitcast=True), 0)
    return tl.sum(bits, axis=0).to(tl.float32, bitcast=True)


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
def spikes(
    scores,
    scale,  # log2(e) / sqrt(D)
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
    spike = exp2(anchored(scores) * scale)
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
        spike = tl.where(seen, spike, 0.0)
    return spike


@triton.jit
def gate_of(hill_calcium, row, TERMS: tl.constexpr, GENERAL: tl.constexpr):
    """sigmoid(s S + b), S = ``hill_calcium``: a polynomial in S - 1/2, or exact."""
    if GENERAL:
        gate = reciprocal(1 + exp2((tl.load(row + S) * hill_calcium + tl.load(row + B)) * -LOG2_E))
    else:
        y = hill_calcium - 0.5
        gate = tl.load(row + GATE + TERMS - 1) + tl.zeros_like(y)
        for i in tl.static_range(1, TERMS):
            gate = gate * y + tl.load(row + GATE + TERMS - 1 - i)
    return gate


@triton.jit
def calcium_trail(spike, calcium, rows, rho_c, alpha):
    """C after each query, and the softplus."""
    softplus = log2(1 + spike) * LN_2
    drive = alpha * softplus
    drive = tl.where((rows == 0)[:, None], rho_c * calcium[None, :] + drive, drive)
    _, trail = tl.associative_scan((tl.zeros_like(drive) + rho_c, drive), 0, affine)
    return trail, softplus


@triton.jit
def release(spike, trail, row, TERMS: tl.constexpr, GENERAL: tl.constexpr):
    """P, gate, coupling E / (E + kappa), 1 / (C + k_d)."""
    # One reciprocal serves both saturations.
    bound = spike + tl.load(row + KAPPA)
    sensed = trail + tl.load(row + K_D)
    both = reciprocal(bound * sensed)
    hill = bound * both
    coupling = spike * (sensed * both)
    gate = gate_of(trail * hill, row, TERMS, GENERAL)
    return gate * coupling, gate, coupling, hill


@triton.jit
def pool_trail(p, pool, rows, rho_r, recovery, MINIMUM: tl.constexpr):
    """W, and z = R - P (rule "min") or R (1 - P) (rule "mul"), of which the next pool is a function.

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
def pool_after(left, rho_r, recovery, MINIMUM: tl.constexpr):
    """The pool that ``left`` of a query leaves to the next."""
    if MINIMUM:
        left = tl.maximum(left, 0.0)
    return rho_r * left + recovery


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
