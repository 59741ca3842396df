"""A synapse that tires, with refinements, query by query: the definition that every other form must equal.

:mod:`bouton.ops.fatigue_attention.reference` has the plain synapse: its spike E, calcium C, release probability P and
pool R. Each refinement adds to it; they compose in this order. For every key j and query head, along the queries t::

    S_t = C_t / (C_t + k_d)                                doc2: S <- min(S + facilitation sigmoid(4 (C_t - 0.12)), 1)
    P_t = sigmoid(s S_t + b) E_t / (E_t + kappa)
    X_t = rho_2 X_{t-1} + alpha_2 log(1 + E_t)             doc2: slow calcium; X = 0 at birth
    D_t = g X_t / (X_t + k_2)                              asynchronous demand, 0 where query t does not see key j
    W_t = min(P_t + D_t, R_t)                              rule "min": release, of both kinds
    W_t = P_t R_t + min(D_t, (1 - P_t) R_t)                rule "mul"
    R_{t+1} = rho_r (R_t - W_t) + (1 - rho_r) r_max
    R_{t+1} = (R_t - W_t) + prime V_t                      endocytosis: what was released comes back, nothing else does
    V_{t+1} = (1 - prime) V_t + W_{t-d}                    reserve; V = 0, and nothing is under way, at birth
    A_{t+1} = max(A_t + fill (1 - A_t) - cost W_t, 0)      metabolism: energy; A = 1 at birth
    Q_t = 1 - strength + strength q_max sigmoid(beta (A_t - 1/2))
    Y_t = W_t, or (1/N) Binomial(N, W_t)                   stochastic: at a share of the queries (:mod:`.release`)
    n_t = E_t (eps + Q_t Y_t)^lam

Pool and energy pay for the mean release W, whatever is drawn and however it is scaled. A key that is not seen rests: it
releases nothing of either kind, its calcium decays, its pool and its energy recover. In release "age" no calcium flows,
so that doc2 has no meaning there. Sources: Yao et al., Cell 147 (2011) 666 (Doc2); Attwell and Laughlin, J. Cereb.
Blood Flow Metab. 21 (2001) 1133 (energy); Saheki and De Camilli, Cold Spring Harb. Perspect. Biol. 4 (2012) a005645
(endocytosis).
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from bouton.ops.fatigue_attention.reference import Kinetics, precision, visible
from bouton.ops.synapse.release import Binomial, read

FACILITATION_SLOPE, FACILITATION_CALCIUM = 4.0, 0.12


class Doc2(NamedTuple):
    """Asynchronous release, each (H,)."""

    rho: Tensor  # decay of the slow calcium per token, in (0, 1)
    alpha: Tensor  # slow calcium per unit of log(1 + E), > 0
    k_half: Tensor  # slow calcium at which the asynchronous demand is half of its largest, > 0
    gain: Tensor  # g: the largest asynchronous demand, >= 0
    facilitation: Tensor  # what residual calcium adds to the fast sensor, >= 0


class Endocytosis(NamedTuple):
    """The way back of released vesicles."""

    prime: Tensor  # (H,), share of the reserve that is primed per token, in (0, 1]
    delay: int  # d >= 1: tokens until a released vesicle is in the reserve


class Metabolism(NamedTuple):
    """Energy of the synapses, each (H,)."""

    fill: Tensor  # share of the missing energy that is filled up per token, in (0, 1]
    cost: Tensor  # energy per unit of release, >= 0
    q_max: Tensor  # amplitude at unlimited energy, in (0, 1]
    beta: Tensor  # steepness of the amplitude in the energy, >= 0
    strength: Tensor  # in [0, 1]; 0: the amplitude is 1


class Refinements(NamedTuple):
    """What goes beyond the plain synapse; None: absent."""

    doc2: Doc2 | None = None
    endocytosis: Endocytosis | None = None
    metabolism: Metabolism | None = None
    stochastic: Binomial | None = None

    def spread(self, dims: int) -> Refinements:
        """Every constant as (H, 1, ...) with ``dims`` trailing axes."""
        return self._replace(
            doc2=spread(self.doc2, dims),
            endocytosis=spread(self.endocytosis, dims),
            metabolism=spread(self.metabolism, dims),
        )


Constants = TypeVar("Constants", Kinetics, Doc2 | None, Endocytosis | None, Metabolism | None)


def spread(constants: Constants, dims: int) -> Constants:
    """The tensors (H,) of a named tuple with ``dims`` trailing axes, to broadcast over synapses."""
    if constants is None:
        return None
    tail = (...,) + (None,) * dims
    wider: Any = {name: x[tail] for name, x in constants._asdict().items() if isinstance(x, Tensor)}
    return constants._replace(**wider)


class Release(NamedTuple):
    """What the synapses do at a query, beside their new state."""

    demand: Tensor  # P + D (rule "mul": P)
    asynchronous: Tensor  # how much of the release is asynchronous
    released: Tensor  # W
    read: Tensor  # Y
    amplitude: Tensor | float  # Q


def newborn(kin: Kinetics, refinements: Refinements, shape: tuple[int, int, int]) -> dict[str, Tensor]:
    """The state of keys that have not been seen yet, (B, H, count) each, ``ring`` (B, H, count, delay)."""
    zero = kin.r_max.new_zeros(shape)
    state = {"calcium": zero, "pool": kin.r_max[:, None].expand(shape)}
    if refinements.doc2 is not None:
        state["slow_calcium"] = zero
    if refinements.endocytosis is not None:
        state["reserve"] = zero
        state["ring"] = kin.r_max.new_zeros(*shape, refinements.endocytosis.delay)
    if refinements.metabolism is not None:
        state["energy"] = torch.ones_like(zero)
    return state


def synchronous(spike: Tensor, seen: Tensor, calcium: Tensor, kin: Kinetics, release: str, doc2: Doc2 | None) -> Tensor:
    """P of queries whose spikes have already entered the calcium."""
    if release == "age":
        return (seen * torch.sigmoid(kin.b) / (1 + kin.kappa)).expand_as(spike)
    sensor = calcium / (calcium + kin.k_d)
    if doc2 is not None:
        residual = torch.sigmoid(FACILITATION_SLOPE * (calcium - FACILITATION_CALCIUM))
        sensor = (sensor + doc2.facilitation * residual).clamp_max(1)
    return torch.sigmoid(kin.s * sensor + kin.b) * spike / (spike + kin.kappa)


def asynchronous(seen: Tensor, slow: Tensor, doc2: Doc2) -> Tensor:
    """D, from the slow calcium X."""
    return seen * doc2.gain * slow / (slow + doc2.k_half)


def amplitude(energy: Tensor, m: Metabolism) -> Tensor:
    """Q, what a vesicle counts for at this energy."""
    return 1 - m.strength + m.strength * m.q_max * torch.sigmoid(m.beta * (energy - 0.5))


def step(
    logits: Tensor,
    seen: Tensor,
    state: dict[str, Tensor],
    kin: Kinetics,
    refinements: Refinements,
    rule: str,
    release: str,
    query: int,
    distance: Tensor,
) -> tuple[Tensor, dict[str, Tensor], Release]:
    """One query.

    Args:
        logits: (B, H, m); ``seen`` bool, broadcastable to it.
        state: as :func:`newborn` makes it.
        kin, refinements: spread to (H, 1).
        query: index of the query, ``distance`` (m,) tokens from each key to it: for random numbers.

    Returns:
        n (B, H, m), the unnormalised weights; the state after the query; and what was released.
    """
    doc2, endocytosis, metabolism, stochastic = refinements
    after = dict(state)
    spike = logits.exp().masked_fill(~seen, 0.0)
    if release == "kinetic":
        after["calcium"] = kin.rho_c * state["calcium"] + kin.alpha_ca * spike.log1p()
    p = synchronous(spike, seen, after["calcium"], kin, release, doc2)
    d = torch.zeros_like(p)
    if doc2 is not None:
        after["slow_calcium"] = doc2.rho * state["slow_calcium"] + doc2.alpha * spike.log1p()
        d = asynchronous(seen, after["slow_calcium"], doc2)

    pool = state["pool"]
    # At a tie the depleted branch is taken, which fixes the gradient there.
    if rule == "min":
        demand = p + d
        depleted = demand >= pool
        released = torch.where(depleted, pool, demand)
        left = torch.where(depleted, 0.0, pool - demand)
        share = d / demand.clamp_min(torch.finfo(d.dtype).tiny)
    else:
        demand, rest = p, (1 - p) * pool
        depleted = d >= rest
        late = torch.where(depleted, rest, d)
        released = p * pool + late
        left = torch.where(depleted, 0.0, rest - d)
        share = late / released.clamp_min(torch.finfo(d.dtype).tiny)
    if endocytosis is None:
        after["pool"] = kin.rho_r * left + (1 - kin.rho_r) * kin.r_max
    else:
        after["pool"] = left + endocytosis.prime * state["reserve"]
        after["reserve"] = (1 - endocytosis.prime) * state["reserve"] + state["ring"][..., 0]
        after["ring"] = torch.cat((state["ring"][..., 1:], released[..., None]), dim=-1)

    size: Tensor | float = 1.0
    if metabolism is not None:
        energy = state["energy"]
        size = amplitude(energy, metabolism)
        paid = energy + metabolism.fill * (1 - energy) - metabolism.cost * released
        after["energy"] = torch.where(paid > 0, paid, 0.0)
    y = released if stochastic is None else read(released[:, :, None], stochastic, query, distance[None])[:, :, 0]
    n = spike * (kin.eps + size * y) ** kin.lam
    return n, after, Release(demand, share * released, released, y, size)


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
    """out (B, Hq, Tq, D) and the state of the last min(Tk, window) keys after the last query.

    Arguments as in :func:`bouton.ops.synapse.synapse`, but with the state of all Tk keys before the first query.
    Differentiable by autograd in everything.
    """
    dtype = precision(q)
    tq, tk = q.shape[2], k.shape[2]
    batch, heads, _, dim = q.shape
    keys, values = k.to(dtype), v.to(dtype)
    queries = (q.to(dtype) * dim**-0.5).reshape(batch, k.shape[1], -1, tq, dim)
    kin, refined = spread(kinetics, 1), refinements.spread(1)
    rows = []
    for t in range(tq):
        logits = (queries[..., t, :] @ keys.mT).view(batch, heads, tk)
        if bias is not None:
            logits = logits + bias.to(dtype).expand(batch, heads, tq, tk)[:, :, t]
        seen = visible(t, t + 1, tq, tk, window, segments_q, segments_k, q.device)[:, :, 0]
        distance = t + tk - tq - torch.arange(tk, device=q.device)
        n, state, _ = step(logits, seen, state, kin, refined, rule, release, t, distance)
        total = n.sum(-1, keepdim=True)
        weight = n / total.masked_fill(total == 0, 1.0)  # a query that sees nothing reads zero
        rows.append((weight.view(batch, k.shape[1], -1, tk) @ values).view(batch, heads, -1))
    return torch.stack(rows, dim=2).to(q.dtype), last(state, tk if window is None else min(window, tk))


def last(state: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """The state of the last ``count`` keys."""
    return {name: x[:, :, x.shape[2] - count :] for name, x in state.items()}
