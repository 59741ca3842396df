"""Chunkwise-parallel execution of the fast-weight recurrence; exact, and differentiable by autograd.

Inside a chunk of C tokens the state before token t (t = 0..C, where C means "after the chunk") is

    F = fast_kept[t] F_0 + sum_i fast_weight[t, i] eta_i k_i (x) u_i
    S = slow_kept[t] S_0 + mixed_kept[t] F_0 + sum_i mixed_weight[t, i] eta_i k_i (x) u_i

with u = v, except for the delta rule, whose prediction errors u solve a unit-triangular system (the WY form). All
weights are products of decays *between* two tokens of the chunk, hence never overflow. With P[u, i] the weight of
write i in F after token u, mixed_weight[t, i] = eta_s sum_{i<=u<t} rho_s^{t-1-u} g_u P[u, i], one matrix product.
Only the states at chunk boundaries are computed one after another. Oja's decay differs between columns: see oja.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bouton.ops.fast_weights.oja import oja_chunks


@dataclass
class _Weights:
    """How writes (t, i) and the incoming state (t) enter the state before token t; t runs over C + 1 rows.

    Shapes, up to sizes of 1: (B, H, N, C+1, C) and, the ``kept``, (B, H, N, C+1, 1).
    """

    fast: Tensor
    fast_kept: Tensor
    mixed: Tensor | None = None
    mixed_kept: Tensor | None = None
    slow_kept: Tensor | None = None

    @property
    def read(self) -> Tensor:
        """Weight of each write in F + S."""
        return self.fast if self.mixed is None else self.fast + self.mixed

    @property
    def read_kept(self) -> Tensor:
        """Weight of F_0 in F + S."""
        return self.fast_kept if self.mixed_kept is None else self.fast_kept + self.mixed_kept


def fast_weights_torch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    *,
    rho_f: Tensor,
    rho_s: Tensor | None,
    eta_s: Tensor | None,
    gate: Tensor | None,
    rule: str,
    fast: Tensor,
    slow: Tensor | None,
    starts: Tensor | None,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Read (B, H, T, dv), final F and final S (None if ``slow`` is None); all tensors in one floating dtype."""
    tokens = q.shape[2]
    reads = []
    # The recurrence runs in float32 whatever precision surrounds it: F sums many small writes.
    with torch.autocast(q.device.type, enabled=False):
        # Whole chunks at once, then the rest as one shorter chunk: padding would let the state decay too far.
        whole = tokens - tokens % chunk
        for begin, end, size in ((0, whole, chunk), (whole, tokens, tokens - whole)):
            if begin == end:
                continue
            part = slice(begin, end)
            inputs = (q[:, :, part], k[:, :, part], v[:, :, part], eta[:, :, part])
            here = None if starts is None else starts[:, part]
            gated = None if gate is None else gate[:, :, part]
            if end - begin == 1:
                read, fast, slow = _step(*inputs, rho_f, rho_s, eta_s, gated, rule, fast, slow, here)
            else:
                read, fast, slow = _chunks(*inputs, rho_f, rho_s, eta_s, gated, rule, fast, slow, here, size)
            reads.append(read)
    if not reads:
        return torch.zeros_like(v), fast, slow
    return reads[0] if len(reads) == 1 else torch.cat(reads, dim=2), fast, slow


def _step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    rho_f: Tensor,
    rho_s: Tensor | None,
    eta_s: Tensor | None,
    gate: Tensor | None,
    rule: str,
    fast: Tensor,
    slow: Tensor | None,
    starts: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """One token: the recurrence itself."""
    if starts is not None:
        alive = ~starts.view(-1, 1, 1, 1)
        fast = fast * alive
        slow = None if slow is None else slow * alive
    read = q @ (fast if slow is None else fast + slow)
    decay, rate = rho_f.view(-1, 1, 1), eta.unsqueeze(-1)
    error = v
    if rule == "delta":
        error = v - k @ fast
    elif rule == "oja":
        decay = (decay - rate * v.square()).clamp(min=0.0)
    fast = decay * fast + k.transpose(-1, -2) * (rate * error)
    if slow is not None and rho_s is not None and eta_s is not None:
        into = eta_s.view(-1, 1, 1) * fast
        slow = rho_s.view(-1, 1, 1) * slow + (into if gate is None else gate.unsqueeze(-1) * into)
    return read, fast, slow


def _chunks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    rho_f: Tensor,
    rho_s: Tensor | None,
    eta_s: Tensor | None,
    gate: Tensor | None,
    rule: str,
    fast: Tensor,
    slow: Tensor | None,
    starts: Tensor | None,
    size: int,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Chunks of ``size`` tokens: weights and in-chunk products for all at once, boundary states in a short loop."""
    count = q.shape[2] // size
    q, k, v = (x.unflatten(2, (count, size)) for x in (q, k, v))  # (B, H, N, C, r | dv)
    rate = eta.unflatten(2, (count, size)).unsqueeze(-1)  # (B, H, N, C, 1)
    gate = None if gate is None else gate.unflatten(2, (count, size))
    starts = None if starts is None else starts.unflatten(1, (count, size)).unsqueeze(1)  # (B, 1, N, C)

    if rule == "oja":
        return oja_chunks(q, k, v, rate, rho_f, rho_s, eta_s, gate, fast, slow, starts)
    weights = _decays(rho_f, size)
    if slow is not None and rho_s is not None and eta_s is not None:
        _add_slow(weights, rho_s, eta_s, gate, size)
    if starts is not None:
        _cut(weights, starts)

    # What each write adds: `own` from the chunk alone; with the delta rule less `seen` F_0.
    own, seen = v, None
    if rule == "delta":
        within = (k @ k.transpose(-1, -2)) * weights.fast[..., :size, :] * rate.transpose(-1, -2)
        known = k * weights.fast_kept[..., :size, :]
        system = torch.cat((v, known), dim=-1)
        eye = torch.eye(size, dtype=k.dtype, device=k.device)
        solved = torch.linalg.solve_triangular(eye + within, system, upper=False, unitriangular=True)
        own, seen = solved.split((v.shape[-1], k.shape[-1]), dim=-1)

    fasts, slows, fast, slow = _boundaries(weights, k, own, seen, rate, fast, slow, count)
    written = rate * (own if seen is None else own - seen @ fasts)  # (B, H, N, C, dv)
    read = (q @ k.transpose(-1, -2) * weights.read[..., :size, :]) @ written
    read = read + (q @ fasts) * weights.read_kept[..., :size, :]
    if slows is not None and weights.slow_kept is not None:
        read = read + (q @ slows) * weights.slow_kept[..., :size, :]
    return read.flatten(2, 3), fast, slow


def _decays(rho: Tensor, size: int) -> _Weights:
    """Weights of F for a decay per head: rho^(t-1-i) and rho^t."""
    row = torch.arange(size + 1, device=rho.device)
    gap = row[:, None] - 1 - row[None, :size]
    between = torch.where(gap >= 0, rho.view(1, -1, 1, 1, 1) ** gap.clamp(min=0), 0.0)
    return _Weights(between, (rho.view(1, -1, 1, 1) ** row).unsqueeze(-1))


def _add_slow(weights: _Weights, rho_s: Tensor, eta_s: Tensor, gate: Tensor | None, size: int) -> None:
    """Weights of S: F after each token u, gated, then decayed by rho_s until t."""
    slow = _decays(rho_s, size)
    step = slow.fast * eta_s.view(1, -1, 1, 1, 1)
    if gate is not None:
        step = step * gate.unsqueeze(-2)
    weights.mixed = step @ weights.fast[..., 1:, :]
    weights.mixed_kept = step @ weights.fast_kept[..., 1:, :]
    weights.slow_kept = slow.fast_kept


def _cut(weights: _Weights, starts: Tensor) -> None:
    """Documents: a write is seen within its own document only, the incoming state until the first start."""
    document = starts.long().cumsum(-1)
    rows = torch.cat((document, document[..., -1:]), dim=-1)
    same = rows.unsqueeze(-1) == document.unsqueeze(-2)
    first = (rows == 0).unsqueeze(-1)
    weights.fast = weights.fast * same
    weights.fast_kept = weights.fast_kept * first
    if weights.mixed is not None and weights.mixed_kept is not None and weights.slow_kept is not None:
        weights.mixed = weights.mixed * same
        weights.mixed_kept = weights.mixed_kept * first
        weights.slow_kept = weights.slow_kept * first


def _boundaries(
    weights: _Weights,
    k: Tensor,
    own: Tensor,
    seen: Tensor | None,
    rate: Tensor,
    fast: Tensor,
    slow: Tensor | None,
    count: int,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """F and S before every chunk, (B, H, N, r, dv), and after the last one."""

    def per_chunk(x: Tensor) -> tuple[Tensor, ...]:
        return x.expand(-1, -1, count, -1, -1).unbind(2)

    def passed(weight: Tensor, kept: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Per chunk: factor of F_0, what the chunk adds, and (delta) the matrix by which F_0 lessens that."""
        into = k.transpose(-1, -2) * (weight[..., -1:, :] * rate.transpose(-1, -2))  # (B, H, N, r, C)
        less = () if seen is None else per_chunk(into @ seen)
        return per_chunk(kept[..., -1:, :]), per_chunk(into @ own), less

    keep, add, less = passed(weights.fast, weights.fast_kept)
    slowly = None
    if slow is not None and weights.mixed is not None and weights.mixed_kept is not None:
        slowly = passed(weights.mixed, weights.mixed_kept)
    keep_slow = () if weights.slow_kept is None else per_chunk(weights.slow_kept[..., -1:, :])

    fasts, slows = [], []
    for n in range(count):
        fasts.append(fast)
        if slow is not None and slowly is not None:
            slows.append(slow)
            slow = keep_slow[n] * slow + slowly[0][n] * fast + slowly[1][n]
            slow = slow - slowly[2][n] @ fast if less else slow
        fast = keep[n] * fast + add[n] - (less[n] @ fast if less else 0.0)
    return torch.stack(fasts, 2), torch.stack(slows, 2) if slows else None, fast, slow
