"""Surrogate derivatives of the spike 1[x > 0], x = membrane potential - threshold (Neftci, Mostafa and Zenke 2019).

A spike has no useful derivative; the backward pass takes one of these instead. All but ``fast_sigmoid`` have area 1.

    atan            (alpha / 2) / (1 + (pi alpha x / 2)^2)              Fang et al. 2021
    fast_sigmoid    1 / (1 + alpha |x|)^2                               Zenke and Ganguli 2018
    sigmoid         alpha g (1 - g), g = 1 / (1 + exp(-alpha x))
    triangle        alpha max(0, 1 - alpha |x|)                         Esser et al. 2016; Bellec et al. 2018
    rectangle       alpha where |x| < 1 / (2 alpha), else 0             Wu et al. 2018
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Name -> alpha unless another one is asked for. The order is the numbering that the kernels share.
SURROGATES: dict[str, float] = {"atan": 2.0, "fast_sigmoid": 25.0, "sigmoid": 25.0, "triangle": 1.0, "rectangle": 1.0}


def surrogate_derivative(x: Tensor, name: str, alpha: float) -> Tensor:
    """The surrogate ``name`` at x (any shape).

    Raises:
        KeyError: there is no such surrogate.
    """
    if name == "atan":
        return (alpha / 2) / (1 + (math.pi / 2 * alpha * x).square())
    if name == "fast_sigmoid":
        return 1 / (1 + alpha * x.abs()).square()
    if name == "sigmoid":
        g = torch.sigmoid(alpha * x)
        return alpha * g * (1 - g)
    if name == "triangle":
        return alpha * (1 - alpha * x.abs()).clamp_min(0)
    if name == "rectangle":
        return alpha * (x.abs() < 1 / (2 * alpha)).to(x.dtype)
    raise KeyError(name)
