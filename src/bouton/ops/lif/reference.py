"""The definition of leaky integrate-and-fire neurons, token by token and differentiated by autograd (use float64).

    I_t = x_t + W s_{t-1}                                  W is absent in the plain scan
    u_t = beta u_{t-1} + gain I_t - rho theta s_{t-1}      reset ``subtract``; rho = 1, or beta with ``before_decay``
    u_t = beta u_{t-1} (1 - s_{t-1}) + gain I_t            reset ``zero``
    u_t = beta u_{t-1} + gain I_t                          reset ``none``
    s_t = 1[u_t > theta]

``subtract`` with ``after_decay`` is snnTorch's Leaky; with ``before_decay`` it is SpikingJelly's soft reset (beta =
1 - 1/tau; with decay_input gain = 1/tau), which fires at u >= theta; ``zero`` is the hard reset of both. The
derivative of a spike is a surrogate's. With ``detach_reset`` no gradient passes through the s_{t-1} of the reset;
through W it always does. Before a token that starts a document, u and s are 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bouton.ops.lif.surrogates import surrogate_derivative


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, surrogate: str, alpha: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.surrogate, ctx.alpha = surrogate, alpha
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        return grad * surrogate_derivative(x, ctx.surrogate, ctx.alpha), None, None


def spike(x: Tensor, surrogate: str, alpha: float) -> Tensor:
    """1 where x > 0, else 0, in the dtype of x; its derivative is the surrogate's."""
    result: Tensor = _Spike.apply(x, surrogate, alpha)
    return result


def lif_step(
    x: Tensor,
    u: Tensor,
    s: Tensor,
    beta: Tensor,
    theta: Tensor,
    gain: Tensor | None,
    w_rec: Tensor | None,
    *,
    reset: str,
    reset_order: str,
    surrogate: str,
    alpha: float,
    detach_reset: bool,
) -> tuple[Tensor, Tensor]:
    """One token: x, u and s (B, H) -> u_t and s_t (B, H)."""
    current = x if w_rec is None else x + s @ w_rec.T
    if gain is not None:
        current = gain * current
    back = s.detach() if detach_reset else s
    if reset == "zero":
        u = beta * (u * (1 - back)) + current
    elif reset == "none":
        u = beta * u + current
    elif reset_order == "before_decay":
        u = beta * (u - theta * back) + current
    else:
        u = beta * u + current - theta * back
    return u, spike(u - theta, surrogate, alpha)


def lif_reference(
    x: Tensor,
    beta: Tensor,
    theta: Tensor,
    gain: Tensor | None,
    w_rec: Tensor | None,
    u0: Tensor,
    s0: Tensor,
    starts: Tensor | None,
    *,
    reset: str,
    reset_order: str,
    surrogate: str,
    alpha: float,
    detach_reset: bool,
) -> tuple[Tensor, Tensor]:
    """Spikes (B, T, H) and the membrane potential (B, H) after the last token; see :mod:`bouton.ops.lif`."""
    u, s, spikes = u0, s0, []
    for t in range(x.shape[1]):
        if starts is not None:
            u, s = u.masked_fill(starts[:, t, None], 0.0), s.masked_fill(starts[:, t, None], 0.0)
        u, s = lif_step(
            x[:, t], u, s, beta, theta, gain, w_rec, reset=reset, reset_order=reset_order, surrogate=surrogate,
            alpha=alpha, detach_reset=detach_reset,
        )  # fmt: skip
        spikes.append(s)
    return (torch.stack(spikes, dim=1) if spikes else x.clone()), u
