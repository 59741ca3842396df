"""Random numbers from counters: a number is a function of what it is drawn for, never of what was drawn before.

The hash is the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) in int64 arithmetic, which wraps around
alike on every device, so that the parallel and the recurrent form, any number of ranks and any backend draw the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

_WEYL = 0x9E3779B97F4A7C15 - 2**64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64
BITS = 23  # k + 1/2 over 2^23 is exact in float32 and never 0 or 1


def fold(key: Tensor, number: Tensor | int) -> Tensor:
    """The key of the ``number``-th child of ``key``, both int64 and broadcast: output ``number`` of SplitMix64."""
    step = (number + 1) * _WEYL
    x = key + (step if isinstance(step, Tensor) else (step + 2**63) % 2**64 - 2**63)
    x = (x ^ _shift(x, 30)) * _FIRST
    x = (x ^ _shift(x, 27)) * _SECOND
    return x ^ _shift(x, 31)


def uniforms(key: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two independent numbers in (0, 1) from the bits of ``key`` (int64), equal in every floating-point format."""
    low = (1 << BITS) - 1
    return tuple(((_shift(key, shift) & low).to(dtype) + 0.5) * 2.0**-BITS for shift in (64 - BITS, 64 - 2 * BITS))  # type: ignore[return-value]


def normal(key: Tensor, dtype: torch.dtype) -> Tensor:
    """A standard normal number (Box and Muller 1958); at most 5.8 standard deviations from 0."""
    radius, angle = uniforms(key, dtype)
    return (-2.0 * radius.log()).sqrt() * (2.0 * torch.pi * angle).cos()


def _shift(x: Tensor, bits: int) -> Tensor:
    """The logical shift to the right: int64 has only the arithmetic one."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
