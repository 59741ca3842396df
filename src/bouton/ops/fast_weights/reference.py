"""The definition of the fast-weight recurrence, token by token. Slow, in the dtype of its inputs (use float64)."""

from __future__ import annotations

import torch
from torch import Tensor


def fast_weights_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    *,
    rho_f: Tensor,
    rho_s: Tensor,
    eta_s: Tensor,
    gate: Tensor | None = None,
    rule: str = "hebb",
    state: dict[str, Tensor] | None = None,
    starts: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """As :func:`bouton.ops.fast_weights.fast_weights`, with eta and gate (B, H, T) and decays (H,) given in full."""
    batch, heads, tokens, rank = q.shape
    fast = q.new_zeros(batch, heads, rank, v.shape[-1]) if state is None else state["fast"]
    slow = torch.zeros_like(fast) if state is None else state["slow"]
    decay_f, decay_s, rate_s = (value.view(1, heads, 1, 1) for value in (rho_f, rho_s, eta_s))
    reads = []
    for t in range(tokens):
        if starts is not None:
            alive = ~starts[:, t].view(batch, 1, 1, 1)
            fast, slow = fast * alive, slow * alive
        query, key, value = q[:, :, t, None, :], k[:, :, t, :, None], v[:, :, t, None, :]
        rate = eta[:, :, t, None, None]
        reads.append(query @ (fast + slow))
        if rule == "hebb":
            fast = decay_f * fast + rate * key * value
        elif rule == "oja":
            fast = (decay_f - rate * value.square()).clamp(min=0.0) * fast + rate * key * value
        else:
            rate = rate.clamp(0.0, 1.0)
            predicted = key.transpose(-1, -2) @ fast
            fast = decay_f * fast + rate * key * (value - predicted)
        consolidated = 1.0 if gate is None else gate[:, :, t, None, None]
        slow = decay_s * slow + rate_s * consolidated * fast
    return torch.cat(reads, dim=2), {"fast": fast, "slow": slow}
