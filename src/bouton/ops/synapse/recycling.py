"""A pool that gets back what it released, after a delay and through a reserve: along a block of queries, with gradient.

    W_t = min(S_t + D_t, R_t),  S_t = P_t ("min") or P_t R_t ("mul")
    R_{t+1} = R_t - W_t + prime V_t
    V_{t+1} = (1 - prime) V_t + W_{t-d}

What comes back within d + 1 tokens is known beforehand, so that stretches of that length could be scanned in parallel;
for the delays in question, walking over the queries with a few fused operations on all keys is faster.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def recycle(
    p: Tensor, d: Tensor | None, pool: Tensor, reserve: Tensor, ring: Tensor, prime: Tensor, rule: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The release W of a block of queries, and the state after it.

    Args:
        p, d: (B, H, t, m), synchronous and asynchronous demand; None: no asynchronous one.
        pool, reserve: (B, H, m) before the block.
        ring: (B, H, m, delay), what is under way, the oldest first.
        prime: (H, 1, 1).

    Returns:
        W (B, H, t, m), pool, reserve, ring; differentiable in all tensors.
    """
    results: tuple[Tensor, ...] = _Recycle.apply(p, d, pool, reserve, ring.movedim(-1, 2), prime[..., 0], rule == "mul")
    released, pool, reserve, ring = results
    return released, pool, reserve, ring.movedim(2, -1)


class _Recycle(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, p: Tensor, d: Tensor | None, pool: Tensor, reserve: Tensor, ring: Tensor, prime: Tensor, mul: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        delay, t = ring.shape[2], p.shape[2]
        history = torch.cat((ring, torch.empty_like(p)), dim=2)  # entry i comes back at query i
        pools, reserves = (torch.empty_like(p) for _ in range(2))
        for i in range(t):
            pools[:, :, i], reserves[:, :, i] = pool, reserve
            demand = p[:, :, i] * pool if mul else p[:, :, i]
            released = torch.minimum(demand if d is None else demand + d[:, :, i], pool)
            history[:, :, delay + i] = released
            pool = torch.addcmul(pool - released, prime, reserve)
            reserve = torch.addcmul(history[:, :, i], 1 - prime, reserve)
        ctx.save_for_backward(p, d, pools, reserves, prime)
        ctx.delay, ctx.mul = delay, mul
        return history[:, :, delay:].clone(), pool, reserve, history[:, :, t:].clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        p, d, pools, reserves, prime = ctx.saved_tensors
        released_bar, pool_bar, reserve_bar, ring_bar = grads
        delay, t = ctx.delay, p.shape[2]
        history_bar = torch.cat((torch.zeros_like(ring_bar), released_bar), dim=2)
        history_bar[:, :, t:] += ring_bar
        demand = p * pools if ctx.mul else p
        # At a tie the depleted branch is taken, as in the definition.
        enough = ((demand if d is None else demand + d) < pools).to(p.dtype)
        # dW / dR: all of it where depleted, else what the demand itself takes from the pool.
        slope = 1 - enough * (1 - p) if ctx.mul else 1 - enough
        total_bar = torch.empty_like(p)
        prime_bar = torch.zeros_like(pool_bar)
        for i in range(t - 1, -1, -1):
            history_bar[:, :, i] += reserve_bar
            total = history_bar[:, :, delay + i] - pool_bar
            total_bar[:, :, i] = total
            spare = pool_bar - reserve_bar
            prime_bar.addcmul_(spare, reserves[:, :, i])
            pool_bar = torch.addcmul(pool_bar, slope[:, :, i], total)
            reserve_bar = torch.addcmul(reserve_bar, prime, spare)
        late_bar = total_bar.mul_(enough)
        p_bar = late_bar * pools if ctx.mul else late_bar
        d_bar = None if d is None else late_bar
        return p_bar, d_bar, pool_bar, reserve_bar, history_bar[:, :, :delay], prime_bar.sum((0, 2))[:, None], None
