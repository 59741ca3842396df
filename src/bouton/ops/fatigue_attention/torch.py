"""Presynaptic-fatigue attention over blocks of queries, with its own backward pass.

Keys are independent before the final sum, so a block of queries needs nothing of the earlier ones but the calcium and
the pool of each key: these are stored at the block boundaries, and the backward pass recomputes the blocks in reverse
order (the scheme of FlashAttention-2, Dao 2023, with a state). No Tq x Tk tensor outlives its block row. Both passes
are opaque operators of ``torch.library``, so that ``torch.compile`` does not unroll their loops.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bouton.ops.fatigue_attention import reference
from bouton.ops.fatigue_attention.blocks import differentiate, rest, rest_backward, simulate
from bouton.ops.fatigue_attention.reference import Kinetics
from bouton.ops.fatigue_attention.tiles import Plan, tile_of

QUERIES_PER_BLOCK = 32


@torch.library.custom_op("bouton::fatigue_attention", mutates_args=())
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kinetics: Tensor,
    calcium: Tensor,
    pool: Tensor,
    segments_q: Tensor | None,
    segments_k: Tensor | None,
    bias: Tensor | None,
    window: int,
    rule: str,
    release: str,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """out, calcium, pool after the last query; for the backward pass: their values at block starts, and sum of n."""
    with torch.autocast(q.device.type, enabled=False):
        plan = Plan.make(q, k, v, kinetics, segments_q, segments_k, window, bias, release, QUERIES_PER_BLOCK)
        c, r = calcium.reshape(-1, plan.tk).clone(), pool.reshape(-1, plan.tk).clone()
        out = torch.empty(q.shape[:3] + v.shape[3:], dtype=c.dtype, device=q.device)
        norm = torch.empty(plan.heads, plan.tq, 1, dtype=c.dtype, device=q.device)
        trail_c, trail_r = [], []
        for start, stop, low, high in plan.tiles():
            if save:
                trail_c.append(c.clone())
                trail_r.append(r.clone())
            logits, seen, _ = plan.activity_input(start, stop, low, high)
            act, n = simulate(
                logits,
                seen,
                c[:, low:high],
                r[:, low:high],
                plan.kin,
                rule,
                release,
                keep=False,
                unit_strength=plan.unit_strength,
            )
            c[:, low:high], r[:, low:high] = act.calcium_after, act.pool_after
            total = n.sum(-1, keepdim=True)
            norm[:, start:stop] = total.masked_fill_(total == 0, 1.0)  # a query that sees nothing reads zero
            read = torch.bmm(plan.grouped(n), plan.v[:, low:high]).view(plan.heads, stop - start, -1)
            out[:, :, start:stop] = read.div_(norm[:, start:stop]).view(out.shape[0], out.shape[1], stop - start, -1)
        if save:
            trail_c.append(c.clone())
            trail_r.append(r.clone())
        idle = plan.idle_steps()
        if idle is not None:
            c, r = rest(c, r, idle, plan.kin, release)
        empty = c.new_empty(0)
        return (
            out.to(q.dtype),
            c.view(calcium.shape),
            r.view(pool.shape),
            torch.stack(trail_c) if save else empty,
            torch.stack(trail_r) if save else empty.clone(),
            norm if save else empty.clone(),
        )


@_forward.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kinetics: Tensor,
    calcium: Tensor,
    pool: Tensor,
    segments_q: Tensor | None,
    segments_k: Tensor | None,
    bias: Tensor | None,
    window: int,
    rule: str,
    release: str,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    heads, tq, tk = q.shape[0] * q.shape[1], q.shape[2], k.shape[2]
    trail = (-(-tq // QUERIES_PER_BLOCK) + 1, heads, tk) if save else (0,)
    return (
        q.new_empty(q.shape[:3] + v.shape[3:]),
        torch.empty_like(calcium, memory_format=torch.contiguous_format),
        torch.empty_like(pool, memory_format=torch.contiguous_format),
        calcium.new_empty(trail),
        calcium.new_empty(trail),
        calcium.new_empty((heads, tq, 1) if save else (0,)),
    )


@torch.library.custom_op("bouton::fatigue_attention_backward", mutates_args=())
def _backward(
    out_bar: Tensor,
    calcium_bar: Tensor,
    pool_bar: Tensor,
    out: Tensor,
    trail_c: Tensor,
    trail_r: Tensor,
    norm: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kinetics: Tensor,
    segments_q: Tensor | None,
    segments_k: Tensor | None,
    bias: Tensor | None,
    window: int,
    rule: str,
    release: str,
    learned: bool,
    bias_learned: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, kinetics (10, Hq), calcium, pool, bias (empty unless wanted)."""
    with torch.autocast(q.device.type, enabled=False):
        plan = Plan.make(q, k, v, kinetics, segments_q, segments_k, window, bias, release, QUERIES_PER_BLOCK)
        kin, dtype = plan.kin, plan.k.dtype
        q_bar, k_bar, v_bar = torch.empty_like(plan.q), torch.zeros_like(plan.k), torch.zeros_like(plan.v)
        bias_bar = torch.zeros_like(plan.bias) if bias_learned and plan.bias is not None else plan.k.new_empty(0)
        sums = {name: plan.k.new_zeros(plan.heads) for name in Kinetics._fields}
        c_bar = calcium_bar.to(dtype).reshape(-1, plan.tk).clone()
        r_bar = pool_bar.to(dtype).reshape(-1, plan.tk).clone()
        idle = plan.idle_steps()
        if idle is not None:
            rest_backward(c_bar, r_bar, trail_c[-1], trail_r[-1], idle, kin, release, sums)
        # The gradient of n / (sum of n) along a row is <out_bar, v_j> minus its mean under the weights.
        slack = (out_bar.to(dtype) * out.to(dtype)).sum(-1).view(plan.heads, -1, 1)
        for block, (start, stop, low, high) in reversed(list(enumerate(plan.tiles()))):
            logits, seen, queries = plan.activity_input(start, stop, low, high)
            c, r = trail_c[block][:, low:high], trail_r[block][:, low:high]
            act, n = simulate(logits, seen, c, r, kin, rule, release, keep=True, unit_strength=plan.unit_strength)
            row = norm[:, start:stop]
            read_bar = out_bar[:, :, start:stop].to(dtype).reshape(plan.heads, stop - start, -1) / row
            grouped_bar = plan.grouped(read_bar)
            slope = torch.bmm(grouped_bar, plan.v[:, low:high].transpose(1, 2)).view(n.shape)
            slope.sub_(slack[:, start:stop] / row)
            v_bar[:, low:high].baddbmm_(plan.grouped(n).transpose(1, 2), grouped_bar)
            adjoint = differentiate(
                act,
                n,
                slope,
                c,
                r,
                c_bar[:, low:high],
                r_bar[:, low:high],
                kin,
                seen,
                rule,
                learned=learned,
                unit_strength=plan.unit_strength,
            )
            c_bar[:, low:high], r_bar[:, low:high] = adjoint.calcium, adjoint.pool
            for name, value in adjoint.kinetics.items():
                sums[name] += value
            grouped_logits = plan.grouped(adjoint.logits)
            k_bar[:, low:high].baddbmm_(grouped_logits.transpose(1, 2), queries)
            q_bar[:, :, start:stop] = torch.bmm(grouped_logits, plan.k[:, low:high]).view_as(q_bar[:, :, start:stop])
            if bias_learned:
                tile = tile_of(bias_bar, start, stop, low, high)
                tile += adjoint.logits.view(*q.shape[:2], stop - start, -1).sum_to_size(tile.shape)
        kinetics_bar = torch.stack([sums[name].view(q.shape[0], -1).sum(0) for name in Kinetics._fields])
        return (
            q_bar.mul_(q.shape[-1] ** -0.5).to(q.dtype),
            k_bar.view(k.shape).to(k.dtype),
            v_bar.view(v.shape).to(v.dtype),
            kinetics_bar.to(kinetics.dtype),
            c_bar.view(calcium_bar.shape),
            r_bar.view(pool_bar.shape),
            bias_bar if bias is None else bias_bar.to(bias.dtype),
        )


@_backward.register_fake
def _(
    out_bar: Tensor,
    calcium_bar: Tensor,
    pool_bar: Tensor,
    out: Tensor,
    trail_c: Tensor,
    trail_r: Tensor,
    norm: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kinetics: Tensor,
    segments_q: Tensor | None,
    segments_k: Tensor | None,
    bias: Tensor | None,
    window: int,
    rule: str,
    release: str,
    learned: bool,
    bias_learned: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    bias_shape = bias.shape if bias_learned and bias is not None else (0,)
    return (
        q.new_empty(q.shape),
        k.new_empty(k.shape),
        v.new_empty(v.shape),
        kinetics.new_empty(kinetics.shape),
        calcium_bar.new_empty(calcium_bar.shape),
        pool_bar.new_empty(pool_bar.shape),
        (q if bias is None else bias).new_empty(bias_shape),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, kinetics, _, _, segments_q, segments_k, bias, window, rule, release, _ = inputs
    out, _, _, trail_c, trail_r, norm = output
    ctx.save_for_backward(out, trail_c, trail_r, norm, q, k, v, kinetics, segments_q, segments_k, bias)
    ctx.options = (window, rule, release)


def _autograd(ctx: Any, out_bar: Tensor, calcium_bar: Tensor, pool_bar: Tensor, *_: Tensor | None) -> tuple[Any, ...]:
    learned, bias_learned = ctx.needs_input_grad[3], ctx.needs_input_grad[8]
    q, k, v, kin, calcium, pool, bias = _backward(
        out_bar, calcium_bar, pool_bar, *ctx.saved_tensors, *ctx.options, learned, bias_learned
    )
    return q, k, v, kin if learned else None, calcium, pool, None, None, bias if bias_learned else None, *[None] * 4


_forward.register_autograd(_autograd, setup_context=_setup_context)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kinetics: Kinetics,
    calcium: Tensor,
    pool: Tensor,
    *,
    rule: str,
    release: str,
    segments_q: Tensor | None = None,
    segments_k: Tensor | None = None,
    window: int | None = None,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Same arguments and results as :func:`bouton.ops.fatigue_attention.reference.forward`."""
    if q.shape[2] == 1:  # decoding: the definition itself is the fastest form
        with torch.autocast(q.device.type, enabled=False):
            return reference.forward(
                q,
                k,
                v,
                kinetics,
                calcium,
                pool,
                rule=rule,
                release=release,
                segments_q=segments_q,
                segments_k=segments_k,
                window=window,
                bias=bias,
            )
    stacked = torch.stack(tuple(kinetics))
    tensors = (q, k, v, stacked, calcium, pool, *(() if bias is None else (bias,)))
    save = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    out, calcium, pool, *_ = _forward(
        q, k, v, stacked, calcium, pool, segments_q, segments_k, bias, window or 0, rule, release, save
    )
    return out, calcium, pool
