"""A bistable molecular latch: CaMKII holds itself active, the phosphatase PP1 shuts it off, and calcium tips the scale.

    m_t = clip(m + a_ca drive_t (1 - m) - b_pp1 p m + gamma m^n / (K^n + m^n),  0, 1)           m, p at t - 1
    p_t = clip(p + a_pp1 erase_t (1 - p) - b_cam m p,  p_basal, 1)
    drive_t = sigmoid(gain (ca_t - theta_ltp)),   erase_t = sigmoid(gain (theta_ltd - ca_t))

Two scalars per head, sequential over tokens. With the default constants and calcium between about 0.52 and 1.40 both an
active and an inactive state are stable.

Source: Lisman and Zhabotinsky 2001; Pi and Lisman 2008 (a bistable switch of CaMKII and PP1).
"""

from __future__ import annotations

from torch import Tensor, promote_types
from torch import bool as torch_bool
from torch import float32 as torch_float32

from bouton.errors import KernelError
from bouton.ops.backends import register_backend, select
from bouton.ops.latch.reference import REST, Rates, latch_reference
from bouton.ops.latch.torch import latch_torch

__all__ = ["REST", "Rates", "latch", "latch_reference"]

OP = "latch"
register_backend(OP, "torch")


def latch(
    calcium: Tensor,
    rates: Rates,
    state: tuple[Tensor, Tensor] | None = None,
    starts: Tensor | None = None,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The latch along a sequence, for every head by itself.

    Args:
        calcium: (B, T, H), 1 at typical activity.
        rates: the constants.
        state: CaMKII and PP1 before the first token, (B, H) each; None: at rest (:data:`REST`).
        starts: (B, T) bool, True at the first token of a document: the latch is at rest before it.
        backend: ``auto`` or the name of a backend.

    Returns:
        CaMKII m and PP1 p after every token, (B, T, H) each, in float32 (float64 for float64), differentiable in
        ``calcium`` and ``state``; the state after the last token is their last row. At a bound, no gradient passes.

    Raises:
        KernelError: a shape or dtype that does not fit, or a backend that cannot run.
    """
    if calcium.dim() != 3 or not calcium.is_floating_point():
        raise KernelError(f"latch: calcium {tuple(calcium.shape)} {calcium.dtype} must be (B, T, H), floating point")
    batch, tokens, heads = calcium.shape
    if starts is not None and (starts.shape != (batch, tokens) or starts.dtype != torch_bool):
        raise KernelError(
            f"latch: starts {tuple(starts.shape)} {starts.dtype} must be (B, T) = {(batch, tokens)} torch.bool"
        )
    for part in state or ():
        if part.shape != (batch, heads):
            raise KernelError(f"latch: state {tuple(part.shape)} must be (B, H) = {(batch, heads)}, twice")
    select(OP, calcium.device, backend)
    calcium = calcium.to(promote_types(calcium.dtype, torch_float32))
    if state is None:
        m, p = (calcium.new_full((batch, heads), value) for value in REST)
    else:
        m, p = (part.to(calcium.dtype) for part in state)
    if tokens == 0:
        return calcium.clone(), calcium.clone()
    return latch_torch(calcium, rates, m, p, starts)
