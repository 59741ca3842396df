"""Chunked execution of Oja's rule, whose decay max(rho_f - eta_t v_tc^2, 0) differs between tokens and columns.

Weights per pair of tokens would need a column dimension, and their factorised form divides by decays that may be 0.
So each chunk runs the recurrence itself, from a zero state and all chunks side by side; what the state at its start
would have added is a factor per column. C + T / C sequential steps instead of T, and every zero is exact.
"""

from __future__ import annotations

import torch
from torch import Tensor


def oja_chunks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rate: Tensor,
    rho_f: Tensor,
    rho_s: Tensor | None,
    eta_s: Tensor | None,
    gate: Tensor | None,
    fast: Tensor,
    slow: Tensor | None,
    starts: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Read (B, H, N C, dv), final F and final S.

    Args:
        q, k, v: (B, H, N, C, r | dv), N chunks of C tokens.
        rate: (B, H, N, C, 1).
        rho_f, rho_s, eta_s: (H,).
        gate: (B, H, N, C) or None.
        fast, slow: (B, H, r, dv) state at the start; slow None: no S.
        starts: (B, 1, N, C) or None.
    """
    count, size = q.shape[2:4]
    factor = (rho_f.view(1, -1, 1, 1, 1) - rate * v.square()).clamp(min=0.0)
    write = rate * v
    # The state that a chunk makes by itself, and the factors (per column) of the state at its start.
    local_fast = torch.zeros_like(fast).unsqueeze(2).expand(-1, -1, count, -1, -1)
    local_slow = None if slow is None else local_fast
    fast_kept, mixed_kept, slow_kept = torch.ones_like(v[..., :1, :]), torch.zeros_like(v[..., :1, :]), q.new_ones(())
    reads, fast_rows, slow_rows = [], [], []
    for c in range(size):
        here = slice(c, c + 1)
        if starts is not None:
            alive = (~starts[..., here]).unsqueeze(-1).to(q.dtype)
            local_fast, fast_kept = local_fast * alive, fast_kept * alive
            if local_slow is not None:
                local_slow, mixed_kept, slow_kept = local_slow * alive, mixed_kept * alive, slow_kept * alive
        reads.append(q[..., here, :] @ (local_fast if local_slow is None else local_fast + local_slow))
        fast_rows.append(fast_kept + mixed_kept)
        slow_rows.append(slow_kept)
        decay = factor[..., here, :]
        local_fast = decay * local_fast + k[..., here, :].transpose(-1, -2) * write[..., here, :]
        fast_kept = decay * fast_kept
        if local_slow is not None and rho_s is not None and eta_s is not None:
            keep, into = rho_s.view(1, -1, 1, 1, 1), eta_s.view(1, -1, 1, 1, 1)
            into = into if gate is None else into * gate[..., here].unsqueeze(-1)
            local_slow = keep * local_slow + into * local_fast
            mixed_kept = keep * mixed_kept + into * fast_kept
            slow_kept = keep * slow_kept

    fasts, slows = [], []
    for n in range(count):
        fasts.append(fast)
        if slow is not None and local_slow is not None:
            slows.append(slow)
            kept = slow_kept.expand(-1, -1, count, -1, -1)[:, :, n]
            slow = kept * slow + mixed_kept[:, :, n] * fast + local_slow[:, :, n]
        fast = fast_kept[:, :, n] * fast + local_fast[:, :, n]
    read = torch.cat(reads, dim=-2) + (q @ torch.stack(fasts, 2)) * torch.cat(fast_rows, dim=-2)
    if slows:
        rows = torch.cat([row.expand(*q.shape[:3], 1, 1) for row in slow_rows], dim=-2)
        read = read + (q @ torch.stack(slows, 2)) * rows
    return read.flatten(2, 3), fast, slow
