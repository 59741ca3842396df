"""camkii: a bistable switch per head that decides what of the fast weights is consolidated.

    ca_t = mean|v_t| / a           calcium: the activity of the head, in units of its typical activity a
    g_t  = sigmoid(beta (m_t - p_t))
    S_t  = rho_s S_{t-1} + eta_s g_t F_t

CaMKII m and its phosphatase PP1 p follow :mod:`bouton.ops.latch`: strong activity latches a head on, it stays on at
normal activity, and long low activity erases it. a is organism state: an average over training steps, fixed at
inference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from bouton.errors import ConfigError
from bouton.mechanisms.base import Mechanism
from bouton.mechanisms.hebb import plasticity_sockets
from bouton.mechanisms.parameters import Params, real
from bouton.mechanisms.pictures import Picture, find
from bouton.mechanisms.registry import register
from bouton.models.sockets import State
from bouton.ops.latch import Rates, latch

if TYPE_CHECKING:
    from bouton.models.body import Body
    from bouton.models.context import Context

UNSEEN = 0.2  # stands for the typical activity until the first training step has measured it
STEPS = 100.0  # optimizer steps over which it is averaged


@dataclass(frozen=True)
class CamkiiParams(Params):
    """Parameters of :class:`Camkii`; rates per token, calcium in units of typical activity."""

    a_ca: float = real(0.6, "rate at which calcium activates CaMKII", low=0, low_open=True, high=1)
    b_pp1: float = real(1.0, "rate at which PP1 inactivates CaMKII", low=0, low_open=True, high=1)
    gamma: float = real(0.45, "autophosphorylation of CaMKII at saturation", low=0)
    n: float = real(6.0, "cooperativity of the autophosphorylation", low=1)
    k: float = real(0.6, "CaMKII at which the autophosphorylation is half", low=0, low_open=True)
    a_pp1: float = real(0.5, "rate at which low calcium restores PP1", low=0, low_open=True, high=1)
    b_cam: float = real(0.3, "rate at which CaMKII inactivates PP1", low=0, high=1)
    p_basal: float = real(0.3, "activity below which PP1 never falls", low=0, high=1, high_open=True)
    gain: float = real(12.0, "steepness of both calcium thresholds", low=0, low_open=True, scale="log")
    theta_ltp: float = real(1.5, "calcium above which CaMKII is driven on", low=0)
    theta_ltd: float = real(0.5, "calcium below which PP1 erases it", low=0)
    beta: float = real(6.0, "steepness of the gate in m - p", low=0, scale="log")

    def check(self) -> None:
        if self.theta_ltd > self.theta_ltp:
            raise ConfigError(
                f"theta_ltd = {self.theta_ltd:g} is above theta_ltp = {self.theta_ltp:g}: what erases must not lie "
                f"above what drives"
            )

    def rates(self) -> Rates:
        """The constants of the latch."""
        return Rates(*(getattr(self, name) for name in Rates._fields))


class Latch(nn.Module):
    """The part in one ``plasticity`` socket. State: ``camkii`` and ``pp1``, (B, heads) after the last token."""

    def __init__(self, owner: Camkii, index: int, layer: int) -> None:
        super().__init__()
        self.owner = (owner,)  # in a tuple: no child of its part
        self.hp, self.index, self.layer = owner.hp, index, layer
        self.rates = owner.hp.rates()

    def forward(self, v: Tensor, ctx: Context, state: State | None) -> tuple[None, Tensor, State]:
        """v (B, heads, T, width) -> no gain, the gate of the consolidation (B, heads, T), and the state."""
        (owner,) = self.owner
        activity = v.to(torch.promote_types(v.dtype, torch.float32)).abs().mean(-1).transpose(1, 2)  # (B, T, heads)
        if self.training:
            owner.observe(f"activity{self.index}", activity.sum((0, 1)), activity.shape[0] * activity.shape[1])
        calcium = activity / owner.activity[self.index].to(activity.dtype)
        before = None if state is None else (state["camkii"], state["pp1"])
        m, p = latch(calcium, self.rates, before, ctx.starts)
        gate = torch.sigmoid(self.hp.beta * (m - p))
        if ctx.vitals is not None:
            latched = (m > p).float()
            for name, value in (("latched", latched), ("calcium", calcium), ("gate", gate)):
                ctx.report(Camkii.name, name, value.detach().mean(), self.layer)
            swaps = (latched[:, 1:] != latched[:, :-1]).float()
            ctx.report(Camkii.name, "switching", swaps.mean() if swaps.numel() else 0.0, self.layer)
        return None, gate.transpose(1, 2), {"camkii": m[:, -1], "pp1": p[:, -1]}


@register
class Camkii(Mechanism):
    """Bistable gate on the consolidation of fast weights."""

    name = "camkii"
    summary = "bistable CaMKII/PP1 latch per head that gates the consolidation of fast weights"
    source = "Lisman and Zhabotinsky 2001; Pi and Lisman 2008 (CaMKII and PP1 as a bistable switch)"
    sockets = ("plasticity",)
    refines = ("hebb",)
    Params = CamkiiParams
    ops = ("latch",)
    state = "camkii and pp1: (B, heads) float32 each per branch of hebb; organism: typical activity per head"
    neutral: ClassVar[Mapping[str, Any] | None] = {}  # it only gates what hebb does
    vital_names: ClassVar[Mapping[str, str]] = {
        "latched": "share of tokens and heads at which CaMKII is above PP1",
        "switching": "share of neighbouring tokens between which a head switches",
        "calcium": "mean activity in units of the typical one",
        "gate": "mean share of F that is consolidated",
    }

    activity: Tensor
    updates: Tensor

    def plug(self, body: Body) -> None:
        sockets = plasticity_sockets(body)
        if not sockets:
            return
        if not sockets[0].consolidates:
            raise ConfigError("mechanism.hebb.eta_s = 0 consolidates nothing that could be gated: it must be > 0")
        self.organism_state("activity", (len(sockets), sockets[0].heads), UNSEEN)
        self.organism_state("updates")
        for index, socket in enumerate(sockets):
            socket.plug(self, Latch(self, index, socket.layer))

    def update_organism(self, means: Mapping[str, Tensor]) -> None:
        """The first step sets the typical activity; then it is a running average over about ``STEPS`` steps."""
        self.updates += 1
        share = 1 / self.updates.clamp(max=STEPS)
        for index, typical in enumerate(self.activity):
            mean = means[f"activity{index}"].to(typical.dtype).clamp_min(1e-6)
            typical += share * (mean - typical)

    def pictures(self, states: Sequence[Mapping[str, Any]]) -> dict[str, Picture]:
        """Per layer CaMKII minus PP1 of every head (rows) after every token (columns): positive where latched on."""
        return {
            f"latch_{label}": Picture(
                torch.stack([s["camkii"] - s["pp1"] for s in held], dim=1), "head", "token", unit="CaMKII - PP1"
            )
            for label, held in find(states, "camkii", "pp1")
        }
