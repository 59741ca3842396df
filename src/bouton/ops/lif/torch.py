"""The neurons in torch: one loop forward, one backward by hand, all that needs no loop in one piece.

With g_t the gradient in s_t, q_t = sigma'(u_t - theta) G_t and delta_t = dL/du_t:

    G_t = g_t + (gain delta_{t+1}) W          and, where the reset is not detached,
          - rho theta delta_{t+1} (subtract), - beta u_t delta_{t+1} (zero)
    delta_t = q_t + beta delta_{t+1}, with (1 - s_t) before beta where the reset is to zero

Tokens are taken apart once: indexing them one by one makes autograd add up a whole (B, T, H) for each of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bouton.ops.lif.reference import lif_step
from bouton.ops.lif.surrogates import surrogate_derivative

if TYPE_CHECKING:
    from bouton.ops.lif import LIFOptions


def lif_torch(
    x: Tensor,
    beta: Tensor,
    theta: Tensor,
    gain: Tensor | None,
    w_rec: Tensor | None,
    u0: Tensor,
    s0: Tensor,
    starts: Tensor | None,
    options: LIFOptions,
) -> tuple[Tensor, Tensor]:
    """See :func:`bouton.ops.lif.reference.lif_reference`; all of one dtype, T >= 1."""
    inputs = (x, beta, theta, gain, w_rec, u0, s0)
    learns = torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in inputs)
    if torch.compiler.is_compiling() or not learns:
        spikes, potentials = _run(*inputs, starts, options)
        return torch.stack(spikes, dim=1), potentials[-1]
    results: tuple[Tensor, Tensor] = _LIF.apply(*inputs, starts, options)
    return results


def _run(
    x: Tensor,
    beta: Tensor,
    theta: Tensor,
    gain: Tensor | None,
    w_rec: Tensor | None,
    u0: Tensor,
    s0: Tensor,
    starts: Tensor | None,
    options: LIFOptions,
) -> tuple[list[Tensor], list[Tensor]]:
    """Spikes and membrane potentials (B, H) of every token."""
    keep = _keep(starts, x.dtype)
    u, s = u0, s0
    spikes, potentials = [], []
    for t, current in enumerate(x.unbind(1)):
        if keep is not None:
            u, s = u * keep[t], s * keep[t]
        u, s = lif_step(current, u, s, beta, theta, gain, w_rec, **vars(options))
        spikes.append(s)
        potentials.append(u)
    return spikes, potentials


def _keep(starts: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, ...] | None:
    """Per token (B, 1): 0 where a document begins, else 1."""
    return None if starts is None else (~starts).to(dtype).unsqueeze(2).unbind(1)


class _LIF(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        beta: Tensor,
        theta: Tensor,
        gain: Tensor | None,
        w_rec: Tensor | None,
        u0: Tensor,
        s0: Tensor,
        starts: Tensor | None,
        options: LIFOptions,
    ) -> tuple[Tensor, Tensor]:
        spikes, potentials = _run(x, beta, theta, gain, w_rec, u0, s0, starts, options)
        s, u = torch.stack(spikes, dim=1), torch.stack(potentials, dim=1)
        ctx.save_for_backward(x, beta, theta, gain, w_rec, u0, s0, starts, s, u)
        ctx.options = options
        return s, potentials[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_s: Tensor, grad_last: Tensor) -> tuple[Tensor | None, ...]:
        x, beta, theta, gain, w_rec, u0, s0, starts, s, u = ctx.saved_tensors
        options: LIFOptions = ctx.options
        slope = surrogate_derivative(u - theta, options.surrogate, options.alpha).unbind(1)
        keep = _keep(starts, x.dtype)
        g, potential, spike = grad_s.unbind(1), u.unbind(1), s.unbind(1)
        deltas: list[Tensor] = []
        carry, into_s = grad_last, None
        q = x.new_zeros(())
        for t in range(x.shape[1] - 1, -1, -1):
            arrives = g[t] if into_s is None else g[t] + into_s
            spiked = slope[t] * arrives
            q = q + spiked.sum(dim=0)
            delta = spiked + carry
            deltas.append(delta)
            before_u, before_s = (potential[t - 1], spike[t - 1]) if t else (u0, s0)
            carry, into_s = _past(delta, before_u, before_s, beta, theta, gain, w_rec, options)
            if keep is not None:
                carry = carry * keep[t]
                into_s = None if into_s is None else into_s * keep[t]
        delta = torch.stack(deltas[::-1], dim=1)
        dx = delta if gain is None else gain * delta
        # What each token began with: nothing, where it begins a document.
        before_u, before_s = (torch.cat((first[:, None], rest[:, :-1]), 1) for first, rest in ((u0, u), (s0, s)))
        if starts is not None:
            before_u, before_s = (each.masked_fill(starts[:, :, None], 0.0) for each in (before_u, before_s))
        need = ctx.needs_input_grad
        d_beta = d_theta = d_gain = d_map = None
        if need[1]:
            decayed = before_u
            if options.reset == "zero":
                decayed = before_u * (1 - before_s)
            elif options.reset == "subtract" and options.reset_order == "before_decay":
                decayed = before_u - theta * before_s
            d_beta = (delta * decayed).sum(dim=(0, 1))
        if need[2]:
            d_theta = -q
            if options.reset == "subtract":
                d_theta = d_theta - _rho(beta, options) * (delta * before_s).sum(dim=(0, 1))
        if need[3] and gain is not None:
            current = x if w_rec is None else x + before_s @ w_rec.T
            d_gain = (delta * current).sum(dim=(0, 1))
        if need[4] and w_rec is not None:
            d_map = dx.flatten(0, 1).T @ before_s.flatten(0, 1)
        d_s0 = torch.zeros_like(s0) if into_s is None else into_s
        return dx if need[0] else None, d_beta, d_theta, d_gain, d_map, carry, d_s0, None, None


def _rho(beta: Tensor, options: LIFOptions) -> Tensor | float:
    return beta if options.reset_order == "before_decay" else 1.0


def _past(
    delta: Tensor,
    u: Tensor,
    s: Tensor,
    beta: Tensor,
    theta: Tensor,
    gain: Tensor | None,
    w_rec: Tensor | None,
    options: LIFOptions,
) -> tuple[Tensor, Tensor | None]:
    """What delta_{t+1} means for u_t (besides by its spike) and for s_t (None: nothing)."""
    carry = beta * delta
    if options.reset == "zero":
        carry = carry * (1 - s)
    into_s = None
    if w_rec is not None:
        into_s = (delta if gain is None else gain * delta) @ w_rec
    if not options.detach_reset and options.reset != "none":
        taken = beta * u if options.reset == "zero" else _rho(beta, options) * theta
        through_reset = -taken * delta
        into_s = through_reset if into_s is None else into_s + through_reset
    return carry, into_s
