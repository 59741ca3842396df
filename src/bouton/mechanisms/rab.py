"""rab: the cargo code of a token against the SNARE codes of the experts, as vesicles find their membrane.

    c_t = softmax(C x_t)                         cargo code of a token, a distribution over `codes` classes
    s_e = softmax(S_e)                           SNARE code of an expert, the same
    logit_e <- logit_e + strength c_t^T M s_e    M: which cargo fuses with which SNARE; the identity at first

All three are learned. Both codes are distributions, so the increment of any expert lies between the smallest and the
largest entry of strength M: a token has few classes to tell experts by, however wide it is. An expert's code belongs to
its root of the routing tree: the twins of a split share it, as they share their row of the router, and in a merge of
roots the codes' logits are averaged with the rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bouton.mechanisms.base import Mechanism
from bouton.mechanisms.parameters import Params, integer, real
from bouton.mechanisms.pictures import Picture
from bouton.mechanisms.registry import register
from bouton.models.router import moved

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bouton.models.body import Body
    from bouton.models.context import Context
    from bouton.models.initialize import Draw


@dataclass(frozen=True)
class RabParams(Params):
    """Parameters of :class:`Rab`."""

    codes: int = integer(8, "classes of cargo and of SNARE", low=2)
    strength: float = real(4.0, "router logits per unit of compatibility; 0 leaves it out", unit="nats", low=0)


class CodeMatch(nn.Module):
    """The part in one ``router`` socket.

    Attributes:
        cargo: (codes, hidden); snare: (slots, codes); compatibility: (codes, codes), cargo by SNARE.
    """

    per_root = ("snare",)

    def __init__(self, hp: RabParams, layer: int, hidden: int, slots: int) -> None:
        super().__init__()
        self.strength, self.layer, self.std = hp.strength, layer, hidden**-0.5
        self.cargo = nn.Parameter(torch.empty(hp.codes, hidden))
        self.snare = nn.Parameter(torch.empty(slots, hp.codes))
        self.compatibility = nn.Parameter(torch.empty(hp.codes, hp.codes))

    def initialize_parameters(self, draw: Draw) -> None:
        draw.normal(self.cargo, self.std, "cargo")
        draw.normal(self.snare, 2.0, "snare")  # each expert has a few classes of its own
        draw.constant(self.compatibility, torch.eye(self.compatibility.shape[0]))

    def affinity(self) -> Tensor:
        """(codes, slots): what a token of each class of cargo adds to the logit of each root."""
        return self.strength * self.compatibility @ self.snare.softmax(-1).mT

    def forward(self, x: Tensor, logits: Tensor, ctx: Context, state: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """x (B, T, hidden), logits (B, T, slots) -> (B, T, slots); it has no state."""
        cargo = F.linear(x, self.cargo).softmax(-1)
        increment = cargo @ self.affinity()
        if ctx.vitals is not None:
            self._report(ctx, cargo, increment, logits)
        return increment, {}

    @torch.no_grad()
    def _report(self, ctx: Context, cargo: Tensor, increment: Tensor, logits: Tensor) -> None:
        alive = logits[0, 0] > -torch.inf
        codes = self.snare.softmax(-1)[alive]
        ctx.report(Rab.name, "cargo_entropy", torch.special.entr(cargo).sum(-1).mean(), self.layer)
        ctx.report(Rab.name, "snare_entropy", torch.special.entr(codes).sum(-1).mean(), self.layer)
        spread = increment[..., alive].std(-1, correction=0).mean()
        ctx.report(Rab.name, "spread", spread, self.layer)
        ctx.report(Rab.name, "moved", moved(logits, increment), self.layer)

    def flops_per_token(self, seq_len: int) -> float:
        codes, hidden = self.cargo.shape
        return 2.0 * codes * (hidden + self.snare.shape[0])


@register
class Rab(Mechanism):
    """Compatibility of the codes of tokens and experts on the router."""

    name = "rab"
    summary = "cargo codes of tokens meet SNARE codes of experts on the router"
    source = "Soellner et al. 1993 (SNARE hypothesis); Stenmark 2009 (Rab proteins)"
    sockets = ("router",)
    Params = RabParams
    refines = ("moe",)
    state = "none"
    neutral: ClassVar[Mapping[str, Any] | None] = {"strength": 0.0}
    vital_names: ClassVar[Mapping[str, str]] = {
        "cargo_entropy": "mean entropy of the tokens' cargo codes, in nats",
        "snare_entropy": "mean entropy of the SNARE codes of the roots, in nats",
        "spread": "standard deviation over the roots of what is added to their logits, in nats",
        "moved": "share of tokens whose largest router logit is another one because of it alone",
    }

    def __init__(self, params: RabParams | None = None) -> None:
        super().__init__(params)
        self.parts: list[CodeMatch] = []  # a plain list: they belong to the body's tree, not to this one

    def plug(self, body: Body) -> None:
        hp: RabParams = self.hp
        if hp.strength == 0:
            return
        for socket in body.sockets("router"):
            part = CodeMatch(hp, socket.layer, socket.hidden_size, socket.slots)
            socket.plug(self, part)
            self.parts.append(part)

    def pictures(self, states: Sequence[Mapping[str, Any]]) -> dict[str, Picture]:
        """Per layer what a token of each class of cargo adds to the logit of each root."""
        return {
            f"affinity_layer{part.layer}": Picture(part.affinity().detach(), "cargo", "root", unit="nats")
            for part in self.parts
        }
