"""bdnf: metaplasticity of fast weights: where a head has been active, it learns faster.

    B_t   = rho_b B_{t-1} + (1 - rho_b) min(|v_t|, max)        neurotrophin, released by postsynaptic activity
    eta_t = eta (1 + gamma B_{t-1})

|v_t| is the mean absolute value over the width of a head, so that ``gamma`` and ``max`` mean the same at every width.

In the graph (``model=substrate``), which has no fast weights to refine, every answer has a trace of its own: its
activity at t is 1 if it was the right one, else 0, and B is carried over all that is learned, not over one text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from bouton.mechanisms.base import Mechanism
from bouton.mechanisms.hebb import plasticity_sockets
from bouton.mechanisms.parameters import Params, real
from bouton.mechanisms.pictures import Picture, find
from bouton.mechanisms.registry import register
from bouton.models.sockets import State
from bouton.ops.scan import affine_scan

if TYPE_CHECKING:
    from bouton.models.body import Body
    from bouton.models.context import Context


@dataclass(frozen=True)
class BdnfParams(Params):
    """Parameters of :class:`Bdnf`."""

    gamma: float = real(1.0, "relative rise of the learning rate per unit of neurotrophin; 0 leaves it out", low=0)
    tau: float = real(20.0, "time constant of the neurotrophin", unit="tokens", low=0, low_open=True, scale="log")
    max: float = real(1.0, "activity beyond which no more is released", low=0, low_open=True, scale="log")


class Neurotrophin(nn.Module):
    """The part in one ``plasticity`` socket. State: ``bdnf`` (B, heads), B after the last token."""

    def __init__(self, hp: BdnfParams, layer: int) -> None:
        super().__init__()
        self.hp, self.layer = hp, layer
        self.rho = math.exp(-1.0 / hp.tau)

    def forward(self, v: Tensor, ctx: Context, state: State | None) -> tuple[Tensor, None, State]:
        """v (B, heads, T, width) -> the gain of the learning rate (B, heads, T), no gate, and the state."""
        activity = _precise(v).abs().mean(-1).clamp(max=self.hp.max).transpose(1, 2)  # (B, T, heads)
        before = torch.zeros_like(activity[:, 0]) if state is None else state["bdnf"]
        trace, after = affine_scan(self.rho, (1 - self.rho) * activity, before, ctx.starts)
        earlier = torch.cat((before.unsqueeze(1).to(trace.dtype), trace[:, :-1]), dim=1)
        if ctx.starts is not None:
            earlier = earlier.masked_fill(ctx.starts.unsqueeze(-1), 0.0)
        gain = 1 + self.hp.gamma * earlier.transpose(1, 2)
        if ctx.vitals is not None:
            ctx.report(Bdnf.name, "gain", gain.detach().mean(), self.layer)
            ctx.report(Bdnf.name, "saturated", (activity.detach() >= self.hp.max).float().mean(), self.layer)
        return gain, None, {"bdnf": after}


def _precise(v: Tensor) -> Tensor:
    return v.to(torch.promote_types(v.dtype, torch.float32))


@register
class Bdnf(Mechanism):
    """Activity-dependent learning rate of the fast weights."""

    name = "bdnf"
    summary = "metaplasticity: a trace of activity raises the learning rate of the fast weights"
    source = "Abraham and Bear 1996 (metaplasticity); Lu 2003 (BDNF and activity-dependent plasticity)"
    sockets = ("plasticity",)
    refines = ("hebb",)
    Params = BdnfParams
    ops = ("scan",)
    state = "bdnf: (B, heads) float32 per branch of hebb"
    neutral: ClassVar[Mapping[str, Any] | None] = {"gamma": 0.0}
    vital_names: ClassVar[Mapping[str, str]] = {
        "gain": "mean factor on the learning rate",
        "saturated": "share of tokens whose activity is at or beyond max",
    }

    def plug(self, body: Body) -> None:
        if self.hp.gamma == 0:
            return
        for socket in plasticity_sockets(body):
            socket.plug(self, Neurotrophin(self.hp, socket.layer))

    def pictures(self, states: Sequence[Mapping[str, Any]]) -> dict[str, Picture]:
        """Per layer the neurotrophin of every head (rows) after every token (columns)."""
        return {
            f"neurotrophin_{label}": Picture(torch.stack([s["bdnf"] for s in held], dim=1), "head", "token", unit="B")
            for label, held in find(states, "bdnf")
        }
