"""One block of queries of presynaptic-fatigue attention, forward and backward, in plain tensor arithmetic.

Everything that needs no order in time is done for the whole block at once; only the two recurrences walk over its
queries, with one or two fused operations per query on all keys. (On a CPU this beats associative scans, which pass over
the block once per doubling, and triangular matrix products.) Shapes: N = B * Hq, t queries in the block, m keys.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bouton.ops.fatigue_attention.reference import Kinetics


class Activity(NamedTuple):
    """What the synapses do during a block: each (N, t, m) unless stated."""

    spike: Tensor  # E
    softplus: Tensor | None  # log(1 + E), kept for the backward pass
    calcium: Tensor | None  # C; None in release "age"
    hill: Tensor | None  # 1 / (C + k_d)
    gate: Tensor | None  # sigmoid(s S + b)
    coupling: Tensor | None  # E / (E + kappa)
    p: Tensor  # release probability
    trace: Tensor  # rule "min": R - P; rule "mul": R
    reach: Tensor  # eps + W
    calcium_after: Tensor  # (N, m)
    pool_after: Tensor  # (N, m)


class Adjoint(NamedTuple):
    """Gradients of a block."""

    logits: Tensor  # (N, t, m)
    calcium: Tensor  # (N, m), of the state before the block
    pool: Tensor  # (N, m)
    kinetics: dict[str, Tensor]  # name -> (N,)


def affine_scan(gain: Tensor, drive: Tensor, start: Tensor) -> Tensor:
    """x_t = gain x_{t-1} + drive_t in place of ``drive`` (N, t, m); ``gain`` (N, 1), ``start`` (N, m)."""
    before = start
    for now in drive.unbind(1):
        torch.addcmul(now, before, gain, out=now)
        before = now
    return drive


def simulate(
    logits: Tensor,
    seen: Tensor | None,
    calcium: Tensor,
    pool: Tensor,
    kin: Kinetics,
    rule: str,
    release: str,
    *,
    keep: bool,
    unit_strength: bool,
) -> tuple[Activity, Tensor]:
    """The activity of a block and its unnormalised weights n (N, t, m).

    Args:
        logits: (N, t, m); overwritten.
        seen: bool, broadcastable to (N, t, m); None if the caller has set the hidden logits to minus infinity.
        calcium, pool: (N, m) before the block.
        kin: constants of shape (N, 1, 1).
        keep: keep what the backward pass needs.
        unit_strength: the strength is 1 in every head, so that no power is taken.
    """
    spike = logits.exp_()
    softplus: Tensor | None = None
    trail: Tensor | None = None
    hill: Tensor | None = None
    gate: Tensor | None = None
    coupling: Tensor | None = None
    if release == "kinetic":
        softplus = spike.log1p()
        trail = affine_scan(kin.rho_c[:, 0], softplus * kin.alpha_ca, calcium)
        calcium = trail[:, -1].clone()
        hill = (trail + kin.k_d).reciprocal_()
        gate = torch.addcmul(kin.s + kin.b, hill, -kin.s * kin.k_d).sigmoid_()
        coupling = spike / (spike + kin.kappa)
        p = gate * coupling
    else:
        assert seen is not None  # an invariant: the callers of release "age" always build the mask
        p = seen * (torch.sigmoid(kin.b) / (1 + kin.kappa))

    rho = kin.rho_r[:, 0]
    recovery = (1 - kin.rho_r) * kin.r_max
    if rule == "min":
        # With z = R - P: z_t = rho max(z_{t-1}, 0) + recovery - P_t, and W = P + min(z, 0).
        trace = recovery - p
        steps = trace.unbind(1)
        torch.sub(pool, p[:, 0], out=steps[0])
        left = torch.clamp_min(steps[0], 0)
        for now in steps[1:]:
            torch.addcmul(now, left, rho, out=now)
            torch.clamp_min(now, 0, out=left)
        pool = torch.addcmul(recovery[:, 0], left, rho)
        reach = torch.clamp_max(trace, 0).add_(p)
    else:
        fade = (1 - p).mul_(kin.rho_r)
        trace = torch.empty_like(p)
        steps = trace.unbind(1)
        steps[0].copy_(pool)
        fades = fade.unbind(1)
        base = recovery[:, 0].expand_as(pool).contiguous()
        for before, f, now in zip(steps, fades, steps[1:], strict=False):
            torch.addcmul(base, f, before, out=now)
        pool = torch.addcmul(base, fades[-1], steps[-1])
        reach = p * trace
    reach.add_(kin.eps)
    n = spike * reach if unit_strength else reach.log().mul_(kin.lam).exp_().mul_(spike)
    if not keep:
        softplus = trail = hill = gate = coupling = None
    return Activity(spike, softplus, trail, hill, gate, coupling, p, trace, reach, calcium, pool), n


def differentiate(
    act: Activity,
    n: Tensor,
    slope: Tensor,
    calcium: Tensor,
    pool: Tensor,
    calcium_bar: Tensor,
    pool_bar: Tensor,
    kin: Kinetics,
    seen: Tensor | None,
    rule: str,
    *,
    learned: bool,
    unit_strength: bool,
) -> Adjoint:
    """The adjoint of :func:`simulate` composed with the normalised sum over values.

    Args:
        slope: (N, t, m), gradient of the loss with respect to n / (sum of n); overwritten.
        calcium, pool: (N, m) state before the block.
        calcium_bar, pool_bar: (N, m) gradient with respect to the state after the block.
        learned: whether gradients of the kinetics are wanted.
    """
    grads: dict[str, Tensor] = {}
    if unit_strength:
        w_bar = act.spike * slope
        logit_bar = w_bar * act.reach
    else:
        logit_bar = n * slope
        w_bar = (logit_bar / act.reach).mul_(kin.lam)
    if learned:
        grads["eps"] = total(w_bar)
        grads["lam"] = total(logit_bar * act.reach.log())

    p_bar, chain = _pool_backward(act, w_bar, pool_bar, kin.rho_r, rule)
    if learned:
        after = chain[:, 1:]
        left = act.trace.clamp_min(0) if rule == "min" else act.trace - act.trace * act.p
        grads["rho_r"] = total(after * (left - kin.r_max))
        grads["r_max"] = total(after) * (1 - kin.rho_r[:, 0, 0])

    if act.gate is None or act.coupling is None or act.hill is None or act.calcium is None or act.softplus is None:
        if learned and seen is not None:
            gate = torch.sigmoid(kin.b[:, 0, 0])
            scale = total(p_bar * seen) * gate / (1 + kin.kappa[:, 0, 0])
            grads["b"] = scale * (1 - gate)
            grads["kappa"] = -scale / (1 + kin.kappa[:, 0, 0])
        return Adjoint(logit_bar, calcium_bar, chain[:, 0], grads)

    p_bar.mul_(act.p)
    rest = torch.addcmul(p_bar, p_bar, act.coupling, value=-1)  # P P_bar (1 - coupling)
    logit_bar.add_(rest)
    x_bar = torch.addcmul(p_bar, p_bar, act.gate, value=-1)  # gradient of s S + b
    c_bar = (x_bar * act.hill).mul_(act.hill).mul_(kin.s * kin.k_d)
    steps = c_bar.unbind(1)
    steps[-1].add_(calcium_bar)
    decay = kin.rho_c[:, 0]
    for i in range(len(steps) - 2, -1, -1):
        torch.addcmul(steps[i], steps[i + 1], decay, out=steps[i])
    if learned:
        sensed = act.calcium * act.hill
        grads["b"] = total(x_bar)
        grads["s"] = total(x_bar * sensed)
        grads["k_d"] = -total(x_bar * sensed * act.hill) * kin.s[:, 0, 0]
        grads["kappa"] = -total(p_bar / (act.spike + kin.kappa))
        grads["alpha_ca"] = total(c_bar * act.softplus)
        grads["rho_c"] = total(c_bar[:, 1:] * act.calcium[:, :-1]) + total(c_bar[:, :1] * calcium[:, None])
    calcium_bar = steps[0] * decay
    logit_bar.add_(c_bar.mul_(kin.alpha_ca).mul_(act.spike).div_(act.spike + 1))
    return Adjoint(logit_bar, calcium_bar, chain[:, 0], grads)


def _pool_backward(act: Activity, w_bar: Tensor, pool_bar: Tensor, rho_r: Tensor, rule: str) -> tuple[Tensor, Tensor]:
    """Gradient of P (N, t, m), and of the pool before each query and after the last (N, t + 1, m)."""
    count, t, m = w_bar.shape
    chain = w_bar.new_empty(count, t + 1, m)
    if rule == "min":
        # Enough vesicles (R > P): W = P and the deficit goes on; depleted: W = R, and the past is forgotten.
        enough = (act.trace > 0).to(w_bar.dtype)
        p_bar = w_bar * enough
        torch.sub(w_bar, p_bar, out=chain[:, :-1])
        fade = enough.mul_(rho_r)
    else:
        fade = (1 - act.p).mul_(rho_r)
        torch.mul(w_bar, act.p, out=chain[:, :-1])
    steps = chain.unbind(1)
    steps[-1].copy_(pool_bar)
    fades = fade.unbind(1)
    for i in range(t - 1, -1, -1):
        torch.addcmul(steps[i], steps[i + 1], fades[i], out=steps[i])
    if rule == "min":
        return p_bar.addcmul_(chain[:, 1:], fade, value=-1), chain
    return (w_bar - chain[:, 1:] * rho_r).mul_(act.trace), chain


def rest(calcium: Tensor, pool: Tensor, idle: Tensor, kin: Kinetics, release: str) -> tuple[Tensor, Tensor]:
    """The state (N, Tk) after ``idle`` (Tk,) further queries that do not see the key."""
    if release == "kinetic":
        calcium = calcium * kin.rho_c[:, 0] ** idle
    return calcium, torch.lerp(kin.r_max[:, 0].expand_as(pool), pool, kin.rho_r[:, 0] ** idle)


def rest_backward(
    c_bar: Tensor,
    r_bar: Tensor,
    calcium: Tensor,
    pool: Tensor,
    idle: Tensor,
    kin: Kinetics,
    release: str,
    sums: dict[str, Tensor],
) -> None:
    """The adjoint of :func:`rest`, in place of ``c_bar`` and ``r_bar``; adds to the gradients of the kinetics, (N,)."""
    rho_r, r_max = kin.rho_r[:, 0], kin.r_max[:, 0]
    sums["r_max"] += (r_bar * (1 - rho_r**idle)).sum(1)
    sums["rho_r"] += (r_bar * (pool - r_max) * idle * rho_r ** (idle - 1)).sum(1)
    r_bar *= rho_r**idle
    if release == "kinetic":
        rho_c = kin.rho_c[:, 0]
        sums["rho_c"] += (c_bar * calcium * idle * rho_c ** (idle - 1)).sum(1)
        c_bar *= rho_c**idle


def total(x: Tensor) -> Tensor:
    """Sum over queries and keys: (N, t, m) -> (N,)."""
    return x.sum((1, 2))
