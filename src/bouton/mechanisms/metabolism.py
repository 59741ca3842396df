"""metabolism: every synapse has an energy account; an exhausted one still releases, but what it releases counts less.

:mod:`bouton.ops.synapse.reference` has the equations. The amplitude is 1 - strength + strength q_max sigmoid(beta (A -
1/2)): at strength 0 it is exactly 1 whatever the energy A, at strength 1 (the default) it is the sigmoid alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from bouton.mechanisms.base import Mechanism
from bouton.mechanisms.parameters import Params, real
from bouton.mechanisms.pictures import Picture, find, over_time
from bouton.mechanisms.presyn import synapses
from bouton.mechanisms.registry import register
from bouton.models.attention import visible_keys
from bouton.ops.synapse import Metabolism, per_head

if TYPE_CHECKING:
    from bouton.models.body import Body
    from bouton.models.context import Context
    from bouton.models.sockets import State
    from bouton.ops.synapse.reference import Release

ELEMENTWISE_FLOPS = 10.0  # arithmetic per visible query-key pair


@dataclass(frozen=True)
class MetabolismParams(Params):
    """Parameters of :class:`SynapticMetabolism`."""

    fill: float = real(0.02, "share of the missing energy filled up per token", low=0, high=1, low_open=True)
    cost: float = real(0.05, "energy per unit of release", low=0, low_open=True, scale="log")
    q_max: float = real(1.0, "amplitude at unlimited energy", low=0, high=1, low_open=True)
    beta: float = real(8.0, "steepness of the amplitude in the energy, around 1/2", low=0, low_open=True, scale="log")
    strength: float = real(1.0, "how far the amplitude follows the energy; 0: not at all", low=0, high=1)


class Account(nn.Module):
    """The part in the ``synapse`` socket of one layer."""

    def __init__(self, hp: MetabolismParams, layer: int, num_heads: int, window: int | None) -> None:
        super().__init__()
        self.hp, self.layer, self.num_heads, self.window = hp, layer, num_heads, window

    def forward(self, q: Tensor, ctx: Context, state: State | None) -> tuple[Metabolism, State]:
        """The constants (H,) for queries q (B, H, T, D); no state of its own beside the synapse's."""
        hp = self.hp
        return Metabolism(*per_head(q, hp.fill, hp.cost, hp.q_max, hp.beta, hp.strength)), {}

    def report(self, ctx: Context, state: State, after: State, released: Release, seen: Tensor) -> None:
        """Vitals over the visible keys (``seen``) of the last query."""
        live = seen.sum()
        ctx.report(SynapticMetabolism.name, "energy", (state["energy"] * seen).sum() / live, self.layer)
        ctx.report(SynapticMetabolism.name, "amplitude", (released.amplitude * seen).sum() / live, self.layer)
        exhausted = ((state["energy"] < 0.5) & seen).sum() / live
        ctx.report(SynapticMetabolism.name, "exhausted", exhausted, self.layer)

    def flops_per_token(self, seq_len: int) -> float:
        return ELEMENTWISE_FLOPS * self.num_heads * visible_keys(seq_len, self.window)


@register
class SynapticMetabolism(Mechanism):
    """Energy of every synapse of presyn."""

    name = "metabolism"
    summary = "each synapse pays for its release from an energy account, which scales its amplitude"
    source = "Attwell and Laughlin, J. Cereb. Blood Flow Metab. 21 (2001) 1133; Rangaraju et al., Cell 156 (2014) 825"
    sockets = ("synapse",)
    refines = ("presyn",)
    Params = MetabolismParams
    ops = ("scan", "synapse")
    state = "energy per layer, (B, H, T_key) float32"
    neutral: ClassVar[Mapping[str, Any] | None] = {"strength": 0.0}
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {"expensive": {"cost": 0.5, "q_max": 0.8, "strength": 0.9}}
    vital_names: ClassVar[Mapping[str, str]] = {
        "energy": "mean energy of the visible keys",
        "amplitude": "mean amplitude of the visible keys",
        "exhausted": "share of the visible keys with less than half of their energy",
    }

    def plug(self, body: Body) -> None:
        hp: MetabolismParams = self.hp
        if hp.strength == 0:
            return
        for core in synapses(body):
            core.synapse.plug(self, Account(hp, core.layer, core.num_heads, core.window))

    def pictures(self, states: Sequence[Mapping[str, Any]]) -> dict[str, Picture]:
        """Per layer and head the energy of every key (columns) after every query (rows)."""
        return {
            f"energy_{label}": Picture(over_time([s["energy"] for s in held]), "query", "key", unit="energy")
            for label, held in find(states, "energy")
        }
