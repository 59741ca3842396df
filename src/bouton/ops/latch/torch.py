"""The latch with a backward pass of its own: a small loop forwards, one product of 2 x 2 matrices per token backwards.

With the local derivatives J_t = d(m_t, p_t) / d(m_{t-1}, p_{t-1}), computed for all tokens at once, the adjoints obey

    l_t = dL/d(m_t, p_t) + J_{t+1}^T l_{t+1}

A custom operator, so that ``torch.compile`` sees one node instead of a loop over tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bouton.ops.latch.reference import REST, Rates


def latch_torch(calcium: Tensor, rates: Rates, m: Tensor, p: Tensor, starts: Tensor | None) -> tuple[Tensor, Tensor]:
    """See :func:`bouton.ops.latch.reference.latch_reference`."""
    active, inactive = _latch(calcium, m, p, starts, list(rates))
    return active, inactive


@torch.library.custom_op("bouton::latch", mutates_args=())
def _latch(
    calcium: Tensor, m: Tensor, p: Tensor, starts: Tensor | None, constants: list[float]
) -> tuple[Tensor, Tensor]:
    rates = Rates(*constants)
    drive, erase = _inputs(calcium, rates)
    # The terms without m or p in front, and the factors of what stays: m (1 - drive) and p (1 - erase).
    stay_m, stay_p = (1 - drive).unbind(1), (1 - erase).unbind(1)
    half = rates.k**rates.n
    active, inactive = torch.empty_like(calcium), torch.empty_like(calcium)
    pairs = zip(drive.unbind(1), erase.unbind(1), stay_m, stay_p, strict=True)
    fresh = _starts_anywhere(starts, calcium.shape[1])
    for t, (up, down, keep_m, keep_p) in enumerate(pairs):
        if starts is not None and fresh[t]:
            m, p = (x.masked_fill(starts[:, t, None], rest) for x, rest in zip((m, p), REST, strict=True))
        power = m**rates.n
        both = m * p
        rise = torch.addcmul(up, keep_m, m).sub_(both, alpha=rates.b_pp1)
        rise.addcdiv_(power, power + half, value=rates.gamma)
        fall = torch.addcmul(down, keep_p, p).sub_(both, alpha=rates.b_cam)
        m = torch.clamp(rise, 0.0, 1.0, out=active[:, t])
        p = torch.clamp(fall, rates.p_basal, 1.0, out=inactive[:, t])
    return active, inactive


@_latch.register_fake
def _(calcium: Tensor, m: Tensor, p: Tensor, starts: Tensor | None, constants: list[float]) -> tuple[Tensor, Tensor]:
    return torch.empty_like(calcium), torch.empty_like(calcium)


@torch.library.custom_op("bouton::latch_backward", mutates_args=())
def _latch_backward(
    grad_m: Tensor,
    grad_p: Tensor,
    calcium: Tensor,
    m: Tensor,
    p: Tensor,
    starts: Tensor | None,
    active: Tensor,
    inactive: Tensor,
    constants: list[float],
) -> tuple[Tensor, Tensor, Tensor]:
    rates = Rates(*constants)
    drive, erase = _inputs(calcium, rates)
    old_m = torch.cat((m.unsqueeze(1), active[:, :-1]), dim=1)
    old_p = torch.cat((p.unsqueeze(1), inactive[:, :-1]), dim=1)
    if starts is not None:
        old_m = old_m.masked_fill(starts.unsqueeze(-1), REST[0])
        old_p = old_p.masked_fill(starts.unsqueeze(-1), REST[1])
    half, lower = rates.k**rates.n, old_m ** (rates.n - 1)
    slope = rates.gamma * rates.n * half * lower / (half + lower * old_m).square()
    inside_m = ((active > 0.0) & (active < 1.0)).to(calcium.dtype)
    inside_p = ((inactive > rates.p_basal) & (inactive < 1.0)).to(calcium.dtype)
    rows = (
        inside_m * (1 - drive - rates.b_pp1 * old_p + slope),  # dm / dm
        inside_m * (-rates.b_pp1 * old_m),  # dm / dp
        inside_p * (-rates.b_cam * old_p),  # dp / dm
        inside_p * (1 - erase - rates.b_cam * old_m),  # dp / dp
    )
    jacobian = torch.stack(rows, dim=-1).unflatten(-1, (2, 2))  # (B, T, H, 2, 2)
    if starts is not None:
        jacobian = jacobian.masked_fill(starts[:, :, None, None, None], 0.0)
    batch, tokens, heads = calcium.shape
    jacobian = jacobian.transpose(0, 1).reshape(tokens, batch * heads, 2, 2)
    grad = torch.stack((grad_m, grad_p), dim=-1).transpose(0, 1).reshape(tokens, batch * heads, 1, 2)
    adjoints = torch.empty_like(grad)
    carried = torch.zeros_like(grad[0])
    for t in range(tokens - 1, -1, -1):
        torch.add(grad[t], carried, out=adjoints[t])
        carried = torch.bmm(adjoints[t], jacobian[t])
    into_m, into_p = adjoints.view(tokens, batch, heads, 2).transpose(0, 1).unbind(-1)
    # drive = a_ca sigmoid(...): its derivative is drive (1 - drive / a_ca) gain
    rise = drive * (1 - drive / rates.a_ca) if rates.a_ca else drive
    fall = erase * (1 - erase / rates.a_pp1) if rates.a_pp1 else erase
    grad_calcium = rates.gain * (into_m * inside_m * (1 - old_m) * rise - into_p * inside_p * (1 - old_p) * fall)
    first = carried.view(batch, heads, 2)
    return grad_calcium, first[..., 0].clone(), first[..., 1].clone()


@_latch_backward.register_fake
def _(
    grad_m: Tensor,
    grad_p: Tensor,
    calcium: Tensor,
    m: Tensor,
    p: Tensor,
    starts: Tensor | None,
    active: Tensor,
    inactive: Tensor,
    constants: list[float],
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(calcium), torch.empty_like(m), torch.empty_like(p)


def _inputs(calcium: Tensor, rates: Rates) -> tuple[Tensor, Tensor]:
    """a_ca drive and a_pp1 erase of every token."""
    drive = rates.a_ca * torch.sigmoid(rates.gain * (calcium - rates.theta_ltp))
    return drive, rates.a_pp1 * torch.sigmoid(rates.gain * (rates.theta_ltd - calcium))


def _starts_anywhere(starts: Tensor | None, tokens: int) -> list[bool]:
    found: list[bool] = [False] * tokens if starts is None else starts.any(dim=0).tolist()
    return found


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    calcium, m, p, starts, ctx.constants = inputs
    ctx.save_for_backward(calcium, m, p, starts, *output)


def _backward(ctx: Any, grad_m: Tensor, grad_p: Tensor) -> tuple[Tensor | None, ...]:
    calcium, m, p, starts, active, inactive = ctx.saved_tensors
    with torch.autocast(calcium.device.type, enabled=False):
        grads = _latch_backward(grad_m, grad_p, calcium, m, p, starts, active, inactive, ctx.constants)
    return *grads, None, None


_latch.register_autograd(_backward, setup_context=_setup)
