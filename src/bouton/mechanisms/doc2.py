"""doc2: a second, slow calcium sensor that releases vesicles out of step with the spikes.

Beside the release that a spike triggers, a key releases what its slow calcium demands, whether the present query
matches it or not; both drain the same pool. :mod:`bouton.ops.synapse.reference` has the equations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from bouton.errors import ConfigError
from bouton.mechanisms.base import Mechanism
from bouton.mechanisms.parameters import Params, real
from bouton.mechanisms.pictures import Picture, find, over_time
from bouton.mechanisms.presyn import synapses
from bouton.mechanisms.registry import register
from bouton.models.attention import visible_keys
from bouton.ops.synapse import Doc2, per_head

if TYPE_CHECKING:
    from bouton.models.body import Body
    from bouton.models.context import Context
    from bouton.models.sockets import State
    from bouton.ops.synapse.reference import Release

ELEMENTWISE_FLOPS = 8.0  # arithmetic per visible query-key pair


@dataclass(frozen=True)
class Doc2Params(Params):
    """Parameters of :class:`AsynchronousRelease`."""

    g: float = real(0.05, "largest asynchronous demand per token; 0: none", unit="vesicle pools", low=0, high=1)
    tau_doc2: float = real(50.0, "decay of the slow calcium", unit="tokens", low=0.1, high=1e6, scale="log")
    alpha_2: float = real(0.02, "slow calcium per unit of softplus(logit)", low=0, low_open=True, scale="log")
    k_2: float = real(1.0, "slow calcium at half of the largest demand", low=0, low_open=True, scale="log")
    doc2_gain: float = real(0.0, "facilitation: what residual calcium adds to the fast sensor", low=0, high=1)


class SlowSensor(nn.Module):
    """The part in the ``synapse`` socket of one layer."""

    def __init__(self, hp: Doc2Params, layer: int, num_heads: int, window: int | None) -> None:
        super().__init__()
        self.hp, self.layer, self.num_heads, self.window = hp, layer, num_heads, window

    def forward(self, q: Tensor, ctx: Context, state: State | None) -> tuple[Doc2, State]:
        """The constants (H,) for queries q (B, H, T, D); no state of its own beside the synapse's."""
        hp = self.hp
        return Doc2(*per_head(q, math.exp(-1 / hp.tau_doc2), hp.alpha_2, hp.k_2, hp.g, hp.doc2_gain)), {}

    def report(self, ctx: Context, state: State, after: State, released: Release, seen: Tensor) -> None:
        """Vitals over the visible keys (``seen``) of the last query."""
        late, total = ((x * seen).sum() for x in (released.asynchronous, released.released))
        ctx.report(Doc2Release.name, "asynchronous", late / total, self.layer)
        slow = (state["slow_calcium"] * seen).sum() / seen.sum()
        ctx.report(Doc2Release.name, "slow_calcium", slow, self.layer)

    def flops_per_token(self, seq_len: int) -> float:
        return ELEMENTWISE_FLOPS * self.num_heads * visible_keys(seq_len, self.window)


@register
class Doc2Release(Mechanism):
    """Asynchronous release from every synapse of presyn."""

    name = "doc2"
    summary = "synapses also release asynchronously, driven by a slow calcium sensor, and may be facilitated"
    source = "Yao et al., Cell 147 (2011) 666; Kaeser and Regehr, Annu. Rev. Physiol. 76 (2014) 333"
    sockets = ("synapse",)
    refines = ("presyn",)
    Params = Doc2Params
    ops = ("scan", "synapse")
    state = "slow calcium per layer, (B, H, T_key) float32"
    neutral: ClassVar[Mapping[str, Any] | None] = {"g": 0.0, "doc2_gain": 0.0}
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "facilitation": {"g": 0.0, "doc2_gain": 0.3},
        "strong": {"g": 0.5, "alpha_2": 0.3, "tau_doc2": 5.0},
    }
    vital_names: ClassVar[Mapping[str, str]] = {
        "asynchronous": "share of the release of the visible keys that is asynchronous, at the last query",
        "slow_calcium": "mean slow calcium of the visible keys",
    }

    def plug(self, body: Body) -> None:
        hp: Doc2Params = self.hp
        if hp.g == 0 and hp.doc2_gain == 0:
            return
        for core in synapses(body):
            if core.hp.release == "age":
                raise ConfigError(
                    "mechanism.presyn.release = age is the control in which no calcium flows, which doc2 needs: use "
                    "release = kinetic, or leave doc2 out"
                )
            core.synapse.plug(self, SlowSensor(hp, core.layer, core.num_heads, core.window))

    def pictures(self, states: Sequence[Mapping[str, Any]]) -> dict[str, Picture]:
        """Per layer and head the slow calcium of every key (columns) after every query (rows)."""
        return {
            f"slow_calcium_{label}": Picture(
                over_time([s["slow_calcium"] for s in held]), "query", "key", unit="slow calcium"
            )
            for label, held in find(states, "slow_calcium")
        }
