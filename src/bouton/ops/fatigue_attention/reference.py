"""Presynaptic-fatigue attention, query by query: the definition that every backend must equal.

Each key is a synapse that tires. Along the queries t, for every key j and query head, with L the attention logit::

    E_t = exp(L_t)                                  0 where query t does not see key j
    C_t = rho_c C_{t-1} + alpha_ca log(1 + E_t)     presynaptic calcium
    S_t = C_t / (C_t + k_d)                         synaptotagmin
    P_t = sigmoid(s S_t + b) E_t / (E_t + kappa)    release probability
    W_t = min(P_t, R_t)    R_{t+1} = rho_r max(R_t - P_t, 0) + (1 - rho_r) r_max       rule "min"
    W_t = P_t R_t          R_{t+1} = rho_r (1 - P_t) R_t + (1 - rho_r) r_max           rule "mul"
    out_t = sum_j n_t v_j / sum_j n_t,   n_t = E_t (eps + W_t)^lam

The rule "mul" is the depression of Tsodyks and Markram, PNAS 94 (1997) 719. The calcium includes the present spike, the
pool is read before its own drain. Release "age" is the control without content: P_t = sigmoid(b) / (1 + kappa) wherever
the key is seen; no calcium flows then, and its state passes through unchanged.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

RULES = ("min", "mul")
RELEASES = ("kinetic", "age")


class Kinetics(NamedTuple):
    """The constants of the synapses, each a tensor (H,) with one value per query head."""

    rho_c: Tensor  # decay of calcium per token, in (0, 1)
    alpha_ca: Tensor  # calcium per unit of softplus(logit), > 0
    k_d: Tensor  # calcium of half-maximal release, > 0
    s: Tensor  # gain of the calcium sensor
    b: Tensor  # bias of release: 2 (prime - complexin)
    kappa: Tensor  # exp(logit) of half-maximal vesicle coupling, > 0
    rho_r: Tensor  # what is left of the pool's deficit after a token, in (0, 1)
    r_max: Tensor  # size of the full pool, > 0
    lam: Tensor  # strength: exponent of the release
    eps: Tensor  # baseline release, > 0

    def per_head(self) -> Kinetics:
        """Every constant as (H, 1), to broadcast over (B, H, Tk)."""
        return Kinetics(*(x[:, None] for x in self))


def precision(q: Tensor) -> torch.dtype:
    """The dtype of the arithmetic and of the state: float64 for float64 input, otherwise float32."""
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def visible(
    start: int,
    stop: int,
    tq: int,
    tk: int,
    window: int | None,
    segments_q: Tensor | None,
    segments_k: Tensor | None,
    device: torch.device,
) -> Tensor:
    """Which keys the queries ``start <= t < stop`` see: bool (B or 1, 1, stop - start, Tk)."""
    query = torch.arange(start, stop, device=device)[:, None] + (tk - tq)
    key = torch.arange(tk, device=device)
    seen = key <= query
    if window is not None:
        seen = seen & (key > query - window)
    if segments_q is None or segments_k is None:
        return seen[None, None]
    return seen & (segments_q[:, None, start:stop, None] == segments_k[:, None, None, :])


def release_probability(spike: Tensor, seen: Tensor, calcium: Tensor, kin: Kinetics, release: str) -> Tensor:
    """P of a query whose spikes E = ``spike`` have already entered ``calcium``; all (B, H, Tk)."""
    if release == "age":
        return seen * torch.sigmoid(kin.b) / (1 + kin.kappa)
    sensor = calcium / (calcium + kin.k_d)
    return torch.sigmoid(kin.s * sensor + kin.b) * spike / (spike + kin.kappa)


def step(
    logits: Tensor, seen: Tensor, calcium: Tensor, pool: Tensor, kin: Kinetics, rule: str, release: str
) -> tuple[Tensor, Tensor, Tensor]:
    """One query: logits and state (B, H, Tk), ``seen`` bool; returns n (unnormalised weights), calcium, pool after it.

    ``kin`` comes from :meth:`Kinetics.per_head`.
    """
    spike = logits.exp().masked_fill(~seen, 0.0)
    if release == "kinetic":
        calcium = kin.rho_c * calcium + kin.alpha_ca * spike.log1p()
    p = release_probability(spike, seen, calcium, kin, release)
    recovery = (1 - kin.rho_r) * kin.r_max
    if rule == "min":
        depleted = p >= pool  # a tie takes the depleted branch, which fixes the gradient there
        released = torch.where(depleted, pool, p)
        pool = kin.rho_r * torch.where(depleted, 0.0, pool - p) + recovery
    else:
        released = p * pool
        pool = kin.rho_r * (1 - p) * pool + recovery
    return spike * (kin.eps + released) ** kin.lam, calcium, pool


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
    """out (B, Hq, Tq, D), calcium and pool (B, Hq, Tk) after the last query.

    Arguments as in :func:`bouton.ops.fatigue_attention.fatigue_attention`, but with the state of all Tk keys before
    the first query. Differentiable by autograd in everything.
    """
    dtype = precision(q)
    tq, tk = q.shape[2], k.shape[2]
    batch, heads, _, dim = q.shape
    keys, values = k.to(dtype), v.to(dtype)
    # Query head h reads key head h // group.
    queries = (q.to(dtype) * dim**-0.5).reshape(batch, k.shape[1], -1, tq, dim)
    kin = kinetics.per_head()
    rows = []
    for t in range(tq):
        logits = (queries[..., t, :] @ keys.mT).view(batch, heads, tk)
        if bias is not None:
            logits = logits + bias.to(dtype).expand(batch, heads, tq, tk)[:, :, t]
        seen = visible(t, t + 1, tq, tk, window, segments_q, segments_k, q.device)[:, :, 0]
        n, calcium, pool = step(logits, seen, calcium, pool, kin, rule, release)
        total = n.sum(-1, keepdim=True)
        weight = n / total.masked_fill(total == 0, 1.0)  # a query that sees nothing reads zero
        rows.append((weight.view(batch, k.shape[1], -1, tk) @ values).view(batch, heads, -1))
    return torch.stack(rows, dim=2).to(q.dtype), calcium, pool
