"""septin_router: lateral inhibition on the router of a mixture of experts, the counterpart of septin on the keys.

    axis experts    logit_e     <- logit_e     - strength (mean of logit_i, 0 < |i - e| <= window, - mean of all)
    axis tokens     logit_{t,e} <- logit_{t,e} - strength mean(logit_{t-window,e}, ..., logit_{t-1,e})

Along the experts it sharpens the router: experts in neighbouring slots exclude each other, as neighbouring receptors
do; slots form a line, and those without an expert are left out. The mean of all only keeps an expert that has no living
neighbour from being treated as if its neighbours' logits were 0. With a window over all of E experts the increment is
the logits times strength / (E - 1), up to a constant: a lower temperature and nothing else.

Along the tokens it spreads the load: what the preceding tokens of the document were drawn to is inhibited, so that a
token is routed by what sets it apart from them. Both see the logits before any other part's increment.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from bouton.mechanisms.base import Mechanism
from bouton.mechanisms.parameters import Params, choice, integer, real
from bouton.mechanisms.registry import register
from bouton.models.router import moved
from bouton.ops.lateral_inhibition import lateral_inhibition

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bouton.models.body import Body
    from bouton.models.context import Context


@dataclass(frozen=True)
class SeptinRouterParams(Params):
    """Parameters of :class:`SeptinRouter`."""

    strength: float = real(0.2, "share of the neighbours' mean logit that is subtracted; 0: none", low=0, high=1)
    window: int = integer(1, "slots on either side, or preceding tokens, that inhibit", low=1)
    axis: str = choice("experts", ("experts", "tokens"), "what is inhibited by its neighbours along")


class RouterInhibition(nn.Module):
    """The part in one ``router`` socket. Along tokens its state are the last ``window`` logits and their validity."""

    def __init__(self, hp: SeptinRouterParams, layer: int) -> None:
        super().__init__()
        self.hp, self.layer = hp, layer

    def forward(
        self, x: Tensor, logits: Tensor, ctx: Context, state: dict[str, Tensor] | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """x (B, T, hidden), logits (B, T, slots) -> (B, T, slots); state ``keys`` (B, 1, window, slots), ``valid``."""
        alive = logits > -torch.inf
        values = logits.masked_fill(~alive, 0)
        after: dict[str, Tensor] = {}
        if self.hp.axis == "experts":
            inhibition = self._neighbours(values, alive.to(values.dtype))
        else:
            # Its difference to the values is what is taken away from them.
            inhibited, after = lateral_inhibition(
                values.unsqueeze(1), 1.0, self.hp.window, starts=ctx.starts, state=state
            )
            inhibition = values - inhibited.squeeze(1)
        increment = -self.hp.strength * inhibition
        if ctx.vitals is not None:
            with torch.no_grad():
                centred = (values - values.sum(-1, keepdim=True) / alive.sum(-1, keepdim=True)) * alive
                taken = (increment - (increment * alive).sum(-1, keepdim=True) / alive.sum(-1, keepdim=True)) * alive
                share = taken.norm() / centred.norm().clamp_min(1e-12)
                ctx.report(SeptinRouter.name, "inhibition", share, self.layer)
                ctx.report(SeptinRouter.name, "moved", moved(logits, increment), self.layer)
        return increment, after

    def _neighbours(self, values: Tensor, alive: Tensor) -> Tensor:
        """Mean over the living neighbours minus the mean over all, (B, T, slots); 0 where there are no neighbours."""
        slot = torch.arange(values.shape[-1], device=values.device)
        distance = (slot[:, None] - slot).abs()
        near = ((distance > 0) & (distance <= self.hp.window)).to(values.dtype)
        number = alive @ near
        mean = values.sum(-1, keepdim=True) / alive.sum(-1, keepdim=True)
        return (values @ near - number * mean) / number.clamp_min(1)

    def extra_repr(self) -> str:
        return f"strength={self.hp.strength}, window={self.hp.window}, axis={self.hp.axis}"


@register
class SeptinRouter(Mechanism):
    """Lateral inhibition between the router's logits."""

    name = "septin_router"
    summary = "router logits are inhibited by those of neighbouring experts or preceding tokens"
    source = "Hartline and Ratliff 1957 (lateral inhibition)"
    sockets = ("router",)
    Params = SeptinRouterParams
    refines = ("moe",)
    ops = ("lateral_inhibition",)
    state = "along tokens the last router logits (B, 1, window, slots) and their validity (B, window) per layer"
    neutral: ClassVar[Mapping[str, Any] | None] = {"strength": 0.0}
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {"tokens": {"axis": "tokens", "window": 3, "strength": 0.5}}
    vital_names: ClassVar[Mapping[str, str]] = {
        "inhibition": "norm of what is subtracted from the logits / norm of the logits, both about their mean",
        "moved": "share of tokens whose largest router logit is another one because of it alone",
    }

    def plug(self, body: Body) -> None:
        if self.hp.strength == 0:
            return
        for socket in body.sockets("router"):
            socket.plug(self, RouterInhibition(self.hp, socket.layer))
