"""endocytosis: released vesicles come back, and only they do; the pool does not recover by itself.

A vesicle is under way for ``delay`` tokens, then in a reserve, of which a share ``prime`` is made ready per token, so
that it takes delay + 1 / prime tokens on average: by default presyn's recovery time of 40. Vesicles are conserved.
:mod:`bouton.ops.synapse.reference` has the equations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from bouton.errors import ConfigError
from bouton.mechanisms.base import Mechanism
from bouton.mechanisms.parameters import Params, flag, integer, real
from bouton.mechanisms.pictures import Picture, find, over_time
from bouton.mechanisms.presyn import PresynParams, synapses
from bouton.mechanisms.registry import register
from bouton.models.attention import visible_keys
from bouton.ops.synapse import Endocytosis, per_head

if TYPE_CHECKING:
    from bouton.models.body import Body
    from bouton.models.context import Context
    from bouton.models.sockets import State
    from bouton.ops.synapse.reference import Release

ELEMENTWISE_FLOPS = 4.0  # arithmetic per visible query-key pair


@dataclass(frozen=True)
class EndocytosisParams(Params):
    """Parameters of :class:`VesicleCycle`."""

    delay: int = integer(15, "time from release to the reserve", unit="tokens", low=1)
    prime: float = real(0.04, "share of the reserve that is primed per token", low=0, high=1, low_open=True)
    enabled: bool = flag(True, "false: the pool recovers as presyn has it")


class Cycle(nn.Module):
    """The part in the ``synapse`` socket of one layer."""

    def __init__(self, hp: EndocytosisParams, layer: int, num_heads: int, window: int | None) -> None:
        super().__init__()
        self.hp, self.layer, self.num_heads, self.window = hp, layer, num_heads, window

    def forward(self, q: Tensor, ctx: Context, state: State | None) -> tuple[Endocytosis, State]:
        """The constants for queries q (B, H, T, D); no state of its own beside the synapse's."""
        (prime,) = per_head(q, self.hp.prime)
        return Endocytosis(prime, self.hp.delay), {}

    def report(self, ctx: Context, state: State, after: State, released: Release, seen: Tensor) -> None:
        """Vitals over the visible keys (``seen``) of the last query."""
        ring = state["ring"].sum(-1)
        total = ((state["pool"] + state["reserve"] + ring) * seen).sum()
        ctx.report(VesicleCycle.name, "reserve", (state["reserve"] * seen).sum() / total, self.layer)
        ctx.report(VesicleCycle.name, "under_way", (ring * seen).sum() / total, self.layer)

    def flops_per_token(self, seq_len: int) -> float:
        return ELEMENTWISE_FLOPS * self.num_heads * visible_keys(seq_len, self.window)


@register
class VesicleCycle(Mechanism):
    """A closed cycle of vesicles in every synapse of presyn."""

    name = "endocytosis"
    summary = "released vesicles return late, through a reserve; their number is conserved"
    source = "Saheki and De Camilli, Cold Spring Harb. Perspect. Biol. 4 (2012) a005645; Rizzoli and Betz 2005"
    sockets = ("synapse",)
    refines = ("presyn",)
    Params = EndocytosisParams
    ops = ("scan", "synapse")
    state = "reserve (B, H, T_key) and vesicles under way (B, H, T_key, delay) per layer, float32"
    neutral: ClassVar[Mapping[str, Any] | None] = {"enabled": False}
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "fast": {"delay": 1, "prime": 0.5},
        "short": {"delay": 4, "prime": 1.0},
    }
    vital_names: ClassVar[Mapping[str, str]] = {
        "reserve": "share of the vesicles of the visible keys that is in the reserve",
        "under_way": "share of the vesicles of the visible keys that is on its way back",
    }

    def plug(self, body: Body) -> None:
        hp: EndocytosisParams = self.hp
        if not hp.enabled:
            return
        for core in synapses(body):
            usual = PresynParams.defaults()["tau_rrp"]
            if core.hp.tau_rrp != usual:
                raise ConfigError(
                    f"mechanism.presyn.tau_rrp = {core.hp.tau_rrp:g} has no effect with endocytosis, which takes the "
                    f"place of the recovery: leave it at {usual:g}, and set delay and prime"
                )
            core.forget("rho_r")
            core.synapse.plug(self, Cycle(hp, core.layer, core.num_heads, core.window))

    def pictures(self, states: Sequence[Mapping[str, Any]]) -> dict[str, Picture]:
        """Per layer and head the reserve and the vesicles under way of every key (columns) after every query (rows)."""
        shown: dict[str, Picture] = {}
        for label, held in find(states, "reserve", "ring"):
            reserve = over_time([s["reserve"] for s in held])
            shown[f"reserve_{label}"] = Picture(reserve, "query", "key", unit="vesicles")
            under_way = over_time([s["ring"].sum(-1) for s in held])
            shown[f"under_way_{label}"] = Picture(under_way, "query", "key", unit="vesicles")
        return shown
