"""The refined synapse over blocks of queries: everything pointwise at once, the recurrences as scans.

Calcium, slow calcium and energy are affine or max-affine recurrences in what is known before them, and so is the pool:
R_{t+1} = max(rho R_t + u - rho Q_t, u) for a demand Q and a recovery u ("min"), and R_{t+1} = max(rho (1 - P_t) R_t + u
- rho D_t, u) ("mul"). Endocytosis has its own form (:mod:`.recycling`).

Keys are independent before the final sum, so a block needs nothing of the earlier ones but the state of the keys. No
Tq x Tk tensor outlives its block: the backward pass computes each block anew.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from bouton.ops.fatigue_attention.reference import Kinetics, precision, visible
from bouton.ops.scan import affine_scan, max_affine_scan
from bouton.ops.synapse import reference
from bouton.ops.synapse.recycling import recycle
from bouton.ops.synapse.reference import Refinements
from bouton.ops.synapse.release import read

QUERIES_PER_BLOCK = 64


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kinetics: Kinetics,
    state: dict[str, Tensor],
    refinements: Refinements,
    *,
    rule: str,
    release: str,
    segments_q: Tensor | None = None,
    segments_k: Tensor | None = None,
    window: int | None = None,
    bias: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Same arguments and results as :func:`bouton.ops.synapse.reference.forward`."""
    tq, tk = q.shape[2], k.shape[2]
    if tq == 1:  # decoding: the definition itself is the fastest form
        return reference.forward(
            q,
            k,
            v,
            kinetics,
            state,
            refinements,
            rule=rule,
            release=release,
            segments_q=segments_q,
            segments_k=segments_k,
            window=window,
            bias=bias,
        )
    dtype = precision(q)
    batch, heads, _, dim = q.shape
    queries = (q.to(dtype) * dim**-0.5).reshape(batch, k.shape[1], -1, tq, dim)
    keys, values = k.to(dtype), v.to(dtype)
    scores = None if bias is None else bias.to(dtype).expand(-1, -1, tq, tk)
    kin, refined = reference.spread(kinetics, 2), refinements.spread(2)
    names = tuple(state)
    unit = not kinetics.lam.requires_grad and bool((kinetics.lam == 1).all())

    def block(start: int, low: int, high: int, q: Tensor, k: Tensor, v: Tensor, *held: Tensor) -> tuple[Tensor, ...]:
        stop = start + q.shape[3]
        logits = (q @ k[:, :, None].mT).view(batch, heads, stop - start, high - low)
        if scores is not None:
            logits = logits + scores[:, :, start:stop, low:high]
        seen = visible(start, stop, tq, tk, window, segments_q, segments_k, q.device)[..., low:high]
        now = torch.arange(start + tk - tq, stop + tk - tq, device=q.device)
        distance = now[:, None] - torch.arange(low, high, device=q.device)
        before = dict(zip(names, held, strict=True))
        n, after = _activity(logits, seen, before, kin, refined, rule, release, start, distance, unit)
        total = n.sum(-1, keepdim=True)
        weight = n / total.masked_fill(total == 0, 1.0)  # a query that sees nothing reads zero
        out = weight.view(batch, k.shape[1], -1, high - low) @ v
        return out.view(batch, heads, stop - start, -1), *(after[name] for name in names)

    rows, held, first, end = [], reference.last(state, 0), 0, 0
    learns = torch.is_grad_enabled() and tq > QUERIES_PER_BLOCK
    for start in range(0, tq, QUERIES_PER_BLOCK):
        stop = min(start + QUERIES_PER_BLOCK, tq)
        high = stop + tk - tq
        low = 0 if window is None else max(start + tk - tq - window + 1, 0)
        # Keys that no later query sees are left behind, new ones are met in the state in which they were born.
        met = {
            name: torch.cat((held[name][:, :, max(low - first, 0) :], x[:, :, max(end, low) : high]), dim=2)
            for name, x in state.items()
        }
        inputs = (queries[..., start:stop, :], keys[:, :, low:high], values[:, :, low:high], *met.values())
        if learns:
            read_out, *after = checkpoint(
                block, start, low, high, *inputs, use_reentrant=False, preserve_rng_state=False
            )
        else:
            read_out, *after = block(start, low, high, *inputs)
        rows.append(read_out)
        held, first, end = dict(zip(names, after, strict=True)), low, high
    count = tk if window is None else min(window, tk)
    return torch.cat(rows, dim=2).to(q.dtype), reference.last(held, count)


def _activity(
    logits: Tensor,
    seen: Tensor,
    state: dict[str, Tensor],
    kin: Kinetics,
    refinements: Refinements,
    rule: str,
    release: str,
    start: int,
    distance: Tensor,
    unit: bool,
) -> tuple[Tensor, dict[str, Tensor]]:
    """n (B, H, t, m) of a block of queries and the state after it; see :func:`.reference.step`.

    ``unit``: the strength is 1 in every head, so that no power is taken.
    """
    doc2, endocytosis, metabolism, stochastic = refinements
    after = dict(state)
    spike = logits.exp().masked_fill(~seen, 0.0)
    calcium = state["calcium"]
    drive = spike.log1p() if release == "kinetic" else spike
    if release == "kinetic":
        calcium, after["calcium"] = _scan(kin.rho_c, kin.alpha_ca * drive, state["calcium"])
    p = reference.synchronous(spike, seen, calcium, kin, release, doc2)
    d: Tensor | None = None
    if doc2 is not None:
        slow, after["slow_calcium"] = _scan(doc2.rho, doc2.alpha * drive, state["slow_calcium"])
        d = reference.asynchronous(seen, slow, doc2)

    if endocytosis is None:
        recovery = ((1 - kin.rho_r) * kin.r_max).expand_as(p)
        released, after["pool"] = _pool(p, d, state["pool"], kin.rho_r, recovery, rule)
    else:
        held = (state["pool"], state["reserve"], state["ring"])
        released, *now = recycle(p, d, *held, endocytosis.prime, rule)
        after |= dict(zip(("pool", "reserve", "ring"), now, strict=True))

    reach = released if stochastic is None else read(released, stochastic, start, distance)
    if metabolism is not None:
        gain = metabolism.fill - metabolism.cost * released
        paid, after["energy"] = _scan(1 - metabolism.fill, gain, state["energy"], 0.0)
        reach = reach * reference.amplitude(_before(paid, state["energy"]), metabolism)
    reach = kin.eps + reach
    return spike * (reach if unit else reach**kin.lam), after


def _pool(p: Tensor, d: Tensor | None, pool: Tensor, rho: Tensor, back: Tensor, rule: str) -> tuple[Tensor, Tensor]:
    """The release W (B, H, t, m) and the pool (B, H, m) after it.

    Args:
        p, d: synchronous and asynchronous demand.
        rho: (H, 1, 1), what is left of the pool's deficit after a token.
        back: (B, H, t, m), what comes back at each token.
    """
    if rule == "min":
        demand = p if d is None else p + d
        trace, after = _scan(rho, back - rho * demand, pool, back)
        return torch.minimum(demand, _before(trace, pool)), after
    if d is None:
        trace, after = _scan(rho * (1 - p), back, pool)
        return p * _before(trace, pool), after
    trace, after = _scan(rho * (1 - p), back - rho * d, pool, back)
    held = _before(trace, pool)
    return p * held + torch.minimum(d, (1 - p) * held), after


def _before(trace: Tensor, start: Tensor) -> Tensor:
    """The state before each query, from that after each."""
    return torch.cat((start[:, :, None], trace[:, :, :-1]), dim=2)


def _scan(a: Tensor, x: Tensor, start: Tensor, floor: Tensor | float | None = None) -> tuple[Tensor, Tensor]:
    """y_t = a_t y_{t-1} + x_t, at least ``floor``, along the queries: y (B, H, t, m) and its last row (B, H, m)."""
    batch, heads, t, m = x.shape
    a = a.expand(batch, heads, *a.shape[-2:]).flatten(0, 1)
    if isinstance(floor, Tensor):
        floor = floor.flatten(0, 1)
    rows, state = x.flatten(0, 1), start.flatten(0, 1)
    y, after = affine_scan(a, rows, state) if floor is None else max_affine_scan(a, rows, floor, state)
    return y.view(batch, heads, t, m), after.view(batch, heads, m)
