"""The oscillating activation in Triton: tiles of rows (axis 0) and features (axis 1), float32 inside.

Triton's own sine is the hardware's approximation, which is off by 5e-7 near 0 and by far more at large angles. Here an
angle a is brought to r = a - k pi in [-pi/2, pi/2], k the nearest integer, with pi in three parts and fused
multiply-adds; then sin a = (-1)^k sin r and cos a = (-1)^k cos r by polynomials. Up to |a| = 2^22 pi = 1.3e7 that is
off by less than 4e-7 and the rounding of a itself; beyond, where neighbouring float32 numbers are a radian apart, sin
and cos are some number of [-1, 1]. An infinite angle gives NaN.
"""

from __future__ import annotations

import math

import numpy as np
import triton
import triton.language as tl
from triton import knobs

# Triton decides when a kernel is defined whether it will be compiled or interpreted.
COMPILED = tl.constexpr(not knobs.runtime.interpret)


def _polynomial(function: np.ufunc, odd: bool, terms: int) -> tuple[float, ...]:
    """Coefficients of powers of s = r^2 of function(r), or of function(r) / r, on r in [0, pi/2]; the highest first.

    Interpolates at Chebyshev nodes of s, which is within a small factor of the best polynomial.
    """
    half = (math.pi / 2) ** 2 / 2
    s = half + half * np.cos(np.pi * (np.arange(terms) + 0.5) / terms)
    r = np.sqrt(s)
    values = function(r) / r if odd else function(r)
    return tuple(float(c) for c in np.linalg.solve(np.vander(s), values))


# Largest errors on [-pi/2, pi/2], of sin relative to r: 6e-9 and 3e-10, before rounding.
SINE = tl.constexpr(_polynomial(np.sin, True, 5))
COSINE = tl.constexpr(_polynomial(np.cos, False, 6))
INVERSE_PI = tl.constexpr(1 / math.pi)
PI_HIGH = tl.constexpr(float(np.float32(math.pi)))
PI_MIDDLE = tl.constexpr(float(np.float32(math.pi - PI_HIGH.value)))
PI_LOW = tl.constexpr(math.pi - PI_HIGH.value - PI_MIDDLE.value)
ROUND = tl.constexpr(1.5 * 2**23)  # added to a number, leaves the nearest integer in the last bits
MINUS_TWO_LOG2_E = tl.constexpr(-2 * math.log2(math.e))


@triton.jit
def fused(a, b, c):
    """a b + c, rounded once. The interpreter's own rounds twice."""
    if COMPILED:
        return tl.fma(a, b, c)
    else:
        return (a.to(tl.float64) * b + c).to(tl.float32)


@triton.jit
def reduced(angle):
    """r in [-pi/2, pi/2], and the sign (-1)^k as the highest bit of an integer."""
    shifted = angle * INVERSE_PI + ROUND
    k = ROUND - shifted  # minus the nearest integer
    r = fused(k, PI_HIGH, angle)
    r = fused(k, PI_MIDDLE, r)
    r = fused(k, PI_LOW, r)
    # Near the end of the range k may be one too far from the nearest; beyond it, r is anything. NaN stays.
    r = tl.where(tl.abs(r) > 2.5, 0.0, r)
    return r, shifted.to(tl.int32, bitcast=True) << 31


@triton.jit
def signed(x, sign):
    """x, or -x where the bit of ``sign`` is set."""
    return (x.to(tl.int32, bitcast=True) ^ sign).to(tl.float32, bitcast=True)


@triton.jit
def polynomial(s, C: tl.constexpr, TERMS: tl.constexpr):
    """Horner's rule."""
    y = tl.full(s.shape, C[0], tl.float32)
    for i in tl.static_range(1, TERMS):
        y = fused(y, s, tl.full(s.shape, C[i], tl.float32))
    return y


@triton.jit
def envelope_of(x):
    """tanh x = 2 / (1 + exp(-2 x)) - 1, exact to one rounding of 1."""
    return 2.0 / (1.0 + tl.exp2(x * MINUS_TWO_LOG2_E)) - 1.0


@triton.jit
def features(pointer, columns, inside):
    """One number per feature, (1, columns)."""
    return tl.load(pointer + columns, mask=inside, other=0.0).to(tl.float32)[None, :]


@triton.jit
def forward(
    x, omega, phi, baseline, y, rows, width, OFFSET: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
    STEPS: tl.constexpr,
):  # fmt: skip
    """y of ``STEPS`` tiles, one below the other."""
    columns = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = columns < width
    frequency, phase = features(omega, columns, inside), features(phi, columns, inside)
    if OFFSET:
        offset = features(baseline, columns, inside)
    for step in range(STEPS):
        row = (tl.program_id(0) * STEPS + step) * BR + tl.arange(0, BR)
        at = row[:, None].to(tl.int64) * width + columns[None, :]
        mask = (row < rows)[:, None] & inside[None, :]
        value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
        r, sign = reduced(fused(value, frequency, phase))
        result = signed(r * polynomial(r * r, SINE, 5), sign) * envelope_of(value)
        if OFFSET:
            result += offset
        tl.store(y + at, result.to(y.dtype.element_ty), mask=mask)


@triton.jit
def backward(
    x, omega, phi, y_bar, x_bar, sums, rows, width, INPUT: tl.constexpr, CONSTANTS: tl.constexpr, BR: tl.constexpr,
    BC: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Gradient of x (if ``INPUT``), and the sums over its own rows for omega, phi and baseline (if ``CONSTANTS``).

    ``sums`` is (3, programs, width).
    """
    columns = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = columns < width
    frequency, phase = features(omega, columns, inside), features(phi, columns, inside)
    of_omega = tl.zeros((BR, BC), tl.float32)
    of_phi = tl.zeros((BR, BC), tl.float32)
    of_baseline = tl.zeros((BR, BC), tl.float32)
    for step in range(STEPS):
        row = (tl.program_id(0) * STEPS + step) * BR + tl.arange(0, BR)
        at = row[:, None].to(tl.int64) * width + columns[None, :]
        mask = (row < rows)[:, None] & inside[None, :]
        value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
        upstream = tl.load(y_bar + at, mask=mask, other=0.0).to(tl.float32)
        r, sign = reduced(fused(value, frequency, phase))
        s = r * r
        envelope = envelope_of(value)
        slope = signed(polynomial(s, COSINE, 6), sign) * envelope  # df/dphi
        if INPUT:
            rise = signed(r * polynomial(s, SINE, 5), sign) * (1.0 - envelope * envelope)
            gradient = upstream * (frequency * slope + rise)
            tl.store(x_bar + at, gradient.to(x_bar.dtype.element_ty), mask=mask)
        if CONSTANTS:
            share = upstream * slope
            of_phi += share
            of_omega += share * value  # df/domega = x df/dphi
            of_baseline += upstream
    if CONSTANTS:
        at = sums + tl.program_id(0) * width + columns
        plane = tl.num_programs(0) * width
        tl.store(at, tl.sum(of_omega, axis=0), mask=inside)
        tl.store(at + plane, tl.sum(of_phi, axis=0), mask=inside)
        tl.store(at + 2 * plane, tl.sum(of_baseline, axis=0), mask=inside)
