"""septin: lateral inhibition between neighbouring keys, and a barrier against distant ones.

    k_j <- k_j - strength * mean(k_{j-window}, ..., k_{j-1})          after rotary positions and QK-norm
    score(t, j) <- score(t, j) - barrier * 2^(-8 h / H) * (t - j)      head h = 1 .. H

The scores are linear in the keys, so the first line inhibits every score q . k_j by the mean score of the keys before
it, with any attention core and at linear cost. The second is a penalty on the absolute distance in tokens, never
relative to the length of the present sequence, so that a pair of tokens is judged alike in training and in decoding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from bouton.mechanisms.base import Mechanism
from bouton.mechanisms.parameters import Params, integer, real
from bouton.mechanisms.registry import register
from bouton.ops.lateral_inhibition import lateral_inhibition

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bouton.mechanisms.vitals import Vitals
    from bouton.models.body import Body
    from bouton.models.context import Context


@dataclass(frozen=True)
class SeptinParams(Params):
    """Parameters of :class:`Septin`."""

    strength: float = real(0.2, "share of the neighbours' mean key that is subtracted; 0 leaves it out", low=0, high=1)
    window: int = integer(4, "number of preceding keys that inhibit", unit="tokens", low=1)
    barrier: float = real(0.0, "strength of the distance penalty; 1 is ALiBi, 0 none", unit="nats per token", low=0)


class KeyInhibition(nn.Module):
    """The part in one ``keys`` socket. Its state are the last ``window`` untransformed keys and whether they exist."""

    def __init__(self, strength: float, window: int, layer: int) -> None:
        super().__init__()
        self.strength, self.window, self.layer = strength, window, layer

    def forward(self, k: Tensor, ctx: Context, state: dict[str, Tensor] | None) -> tuple[Tensor, dict[str, Tensor]]:
        """k (B, H_kv, T, D) -> the same shape; state ``keys`` (B, H_kv, window, D), ``valid`` (B, window) bool."""
        inhibited, after = lateral_inhibition(k, self.strength, self.window, starts=ctx.starts, state=state)
        if ctx.vitals is not None:
            with torch.no_grad():
                before = k.float().norm().clamp_min(1e-12)
                ctx.report(Septin.name, "inhibition", (k.float() - inhibited.float()).norm() / before, self.layer)
                ctx.report(Septin.name, "key_gain", inhibited.float().norm() / before, self.layer)
        return inhibited, after

    def extra_repr(self) -> str:
        return f"strength={self.strength}, window={self.window}"


class DistanceBarrier(nn.Module):
    """The part in one ``attention_scores`` socket: a penalty that grows linearly with the distance in tokens."""

    def __init__(self, barrier: float) -> None:
        super().__init__()
        self.barrier = barrier

    def forward(self, ctx: Context, num_heads: int, tq: int, tk: int) -> Tensor:
        """(1, num_heads, tq, tk) float32, 0 on the diagonal; the last query stands at the last key."""
        device = ctx.positions.device
        query = torch.arange(tk - tq, tk, device=device)[:, None]
        distance = (query - torch.arange(tk, device=device)).clamp_min(0)  # later keys are masked anyway
        heads = torch.arange(1, num_heads + 1, device=device, dtype=torch.float32)
        slopes = self.barrier * torch.exp2(-8.0 * heads / num_heads)
        return -(slopes[:, None, None] * distance)[None]

    def extra_repr(self) -> str:
        return f"barrier={self.barrier}"


@register
class Septin(Mechanism):
    """Lateral inhibition of keys, and a distance penalty on the attention scores."""

    name = "septin"
    summary = "keys are inhibited by their predecessors; scores fall with distance"
    source = "Hartline and Ratliff 1957 (lateral inhibition); Press, Smith and Lewis 2022 (ALiBi)"
    sockets = ("keys", "attention_scores")
    Params = SeptinParams
    ops = ("lateral_inhibition",)
    state = "the last untransformed keys (B, H_kv, window, D) and their validity (B, window) per layer"
    neutral: ClassVar[Mapping[str, Any] | None] = {"strength": 0.0, "barrier": 0.0}
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "barrier": {"strength": 0.0, "barrier": 0.5},
        "both": {"strength": 0.5, "window": 3, "barrier": 1.0},
    }
    vital_names: ClassVar[Mapping[str, str]] = {
        "inhibition": "norm of what is subtracted from the keys / norm of the keys",
        "key_gain": "norm of the keys after / before inhibition",
    }

    def plug(self, body: Body) -> None:
        hp: SeptinParams = self.hp
        if hp.strength > 0:
            for socket in body.sockets("keys"):
                socket.plug(self, KeyInhibition(hp.strength, hp.window, socket.layer))
            # |k - strength * mean| <= (1 + strength) |k|: a core that needs bounded logits must hear of it.
            for core in body.sockets("attention_core"):
                if core.max_logit is not None:
                    core.shape["max_logit"] *= 1 + hp.strength
        if hp.barrier > 0:
            for socket in body.sockets("attention_scores"):
                socket.plug(self, DistanceBarrier(hp.barrier))

    def report(self, vitals: Vitals) -> None:
        if self.hp.strength == 0:  # no part that could: the keys are as they were
            vitals.add(self.name, "inhibition", 0.0, -1)
            vitals.add(self.name, "key_gain", 1.0, -1)
