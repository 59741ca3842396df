"""One step of a neuron in Triton, forward and what its backward pass needs; arguments of any one shape, float32.

The kernels are compiled without fused multiply-add: every product and sum is rounded by itself, in the order of the
definition, so that membrane potentials and spikes are those of the torch form in float32 to the last bit, and a
backward pass that computes them anew finds the same ones.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

HALF_PI = tl.constexpr(math.pi / 2)
LOG2_E = tl.constexpr(math.log2(math.e))


@triton.jit
def membrane(u, s, current, beta, theta, RESET: tl.constexpr):
    """u_t from u_{t-1}, s_{t-1} and the current."""
    if RESET == "zero":
        return beta * (u * (1.0 - s)) + current
    elif RESET == "none":
        return beta * u + current
    elif RESET == "subtract_before_decay":
        return beta * (u - theta * s) + current
    else:
        return beta * u + current - theta * s


@triton.jit
def spike(u, theta):
    """1 where u > theta, else 0."""
    return tl.where(u > theta, 1.0, 0.0)


@triton.jit
def slope(x, alpha, SURROGATE: tl.constexpr):
    """The surrogate derivative of a spike at x = u - theta; see :mod:`bouton.ops.lif.surrogates`."""
    if SURROGATE == "atan":
        y = alpha * x * HALF_PI
        return 0.5 * alpha / (1.0 + y * y)
    elif SURROGATE == "fast_sigmoid":
        y = 1.0 + alpha * tl.abs(x)
        return 1.0 / (y * y)
    elif SURROGATE == "sigmoid":
        g = 1.0 / (1.0 + tl.exp2(alpha * x * -LOG2_E))
        return alpha * g * (1.0 - g)
    elif SURROGATE == "triangle":
        return alpha * tl.maximum(1.0 - alpha * tl.abs(x), 0.0)
    else:  # rectangle
        return tl.where(tl.abs(x) * (2.0 * alpha) < 1.0, alpha, 0.0)


@triton.jit
def decayed(u, s, theta, RESET: tl.constexpr):
    """What of u_{t-1} is multiplied by beta: du_t/dbeta."""
    if RESET == "zero":
        return u * (1.0 - s)
    elif RESET == "subtract_before_decay":
        return u - theta * s
    else:
        return u


@triton.jit
def into_theta(s, beta, RESET: tl.constexpr):
    """du_t/dtheta by the reset."""
    if RESET == "subtract":
        return -s
    elif RESET == "subtract_before_decay":
        return -(beta * s)
    else:
        return 0.0 * s


@triton.jit
def into_u(delta, s, beta, RESET: tl.constexpr):
    """What ``delta`` = dL/du_t means for u_{t-1}, besides by its spike."""
    if RESET == "zero":
        return beta * delta * (1.0 - s)
    else:
        return beta * delta


@triton.jit
def into_s(delta, u, beta, theta, RESET: tl.constexpr, DETACH: tl.constexpr):
    """What ``delta`` = dL/du_t means for s_{t-1} by the reset."""
    if DETACH or RESET == "none":
        return 0.0 * delta
    elif RESET == "zero":
        return -(beta * u) * delta
    elif RESET == "subtract_before_decay":
        return -(beta * theta) * delta
    else:
        return -theta * delta
