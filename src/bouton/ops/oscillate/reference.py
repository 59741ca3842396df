"""The definition of the oscillating activation, in plain arithmetic and differentiated by autograd."""

from __future__ import annotations

import torch
from torch import Tensor


def oscillate_reference(x: Tensor, omega: Tensor, phi: Tensor, baseline: Tensor | None = None) -> Tensor:
    """sin(omega x + phi) tanh(x) + baseline; x (..., width), the others (width,)."""
    y = torch.sin(omega * x + phi) * torch.tanh(x)
    return y if baseline is None else y + baseline
