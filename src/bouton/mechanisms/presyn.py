"""presyn: attention whose synapses tire.

Every key is a presynaptic terminal: each query that matches it raises its calcium, calcium raises its release, release
drains its vesicle pool, and an empty pool counts for less in the softmax until it has recovered.
:mod:`bouton.ops.fatigue_attention.reference` has the equations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bouton.errors import ConfigError
from bouton.mechanisms.base import Mechanism
from bouton.mechanisms.parameters import Params, choice, flag, real
from bouton.mechanisms.pictures import Picture, find, over_time
from bouton.mechanisms.registry import register
from bouton.models.attention import visible_keys
from bouton.models.context import Context
from bouton.models.sockets import ListSocket, State
from bouton.ops.fatigue_attention import RELEASES, RULES, Kinetics, fatigue_attention
from bouton.ops.fatigue_attention.reference import precision
from bouton.ops.synapse import Refinements, reference, synapse

if TYPE_CHECKING:
    from bouton.models.body import Body
    from bouton.models.initialize import Draw

MAX_LOGIT = 30.0  # the kernels exponentiate logits without subtracting a maximum
MAX_SENSOR_GAIN = 4.0  # up to here the kernels' polynomial of the release probability is exact to 2e-6
CALCIUM = ("tau_c", "alpha_ca", "k_d", "s")
ELEMENTWISE_FLOPS = 22.0  # arithmetic per visible query-key pair beside the two products


@dataclass(frozen=True)
class PresynParams(Params):
    """Kinetics of the synapses; with ``learnable`` the initial values of one set per head."""

    rule: str = choice("min", RULES, "what a synapse releases: the smaller of demand and supply, or their product")
    release: str = choice("kinetic", RELEASES, "kinetic; age: control in which a key tires with its age alone")
    tau_c: float = real(6.0, "decay of calcium", unit="tokens", low=0.1, high=1e6, scale="log")
    alpha_ca: float = real(0.55, "calcium per unit of softplus(logit)", low=0, low_open=True, scale="log")
    k_d: float = real(0.7, "calcium at which the sensor is half saturated", low=0, low_open=True, scale="log")
    s: float = real(3.0, "gain of the calcium sensor on release", low=0, high=MAX_SENSOR_GAIN)
    b: float | None = real(None, "bias of release: 2 (prime - complexin); null: -0.8, learnable: -3", low=-20, high=20)
    kappa: float = real(1.0, "exp(logit) at which vesicle coupling is half", low=0, low_open=True, scale="log")
    tau_rrp: float = real(40.0, "recovery of the vesicle pool", unit="tokens", low=0.1, high=1e6, scale="log")
    r_max: float = real(1.0, "size of the full vesicle pool", low=0, low_open=True, scale="log")
    strength: float = real(1.0, "exponent (lambda) of the release in the attention weight; 0: plain attention", low=0)
    eps: float = real(1e-3, "release of an empty synapse", low=0, low_open=True, high=1, scale="log")
    learnable: bool = flag(False, "learn all kinetics, per head")

    def check(self) -> None:
        if self.release == "age":
            for name in CALCIUM:
                if getattr(self, name) != (default := self.defaults()[name]):
                    raise ConfigError(
                        f"{name} = {getattr(self, name):g} has no effect with release = age, where no calcium flows: "
                        f"leave it at {default:g}"
                    )
        if self.learnable and not 0 < self.s < MAX_SENSOR_GAIN:
            raise ConfigError(f"s = {self.s:g} cannot be learned from: it must be > 0 and < {MAX_SENSOR_GAIN:g}")

    def kinetics(self) -> dict[str, float]:
        """The constants of the equations: fields of :class:`Kinetics` -> value."""
        return {
            "rho_c": math.exp(-1 / self.tau_c),
            "alpha_ca": self.alpha_ca,
            "k_d": self.k_d,
            "s": self.s,
            "b": self.b if self.b is not None else (-3.0 if self.learnable else -0.8),
            "kappa": self.kappa,
            "rho_r": math.exp(-1 / self.tau_rrp),
            "r_max": self.r_max,
            "lam": self.strength,
            "eps": self.eps,
        }


def _logit(y: float) -> float:
    return math.log(y) - math.log1p(-y)


def _inverse_softplus(y: float) -> float:
    return y + math.log(-math.expm1(-y))


Transform = Callable[[Tensor], Tensor]
Inverse = Callable[[float], float]
# How a learned constant stays in its range: constrained value from the free parameter, and back.
_DECAY: tuple[Transform, Inverse] = (torch.sigmoid, _logit)
_POSITIVE: tuple[Transform, Inverse] = (F.softplus, _inverse_softplus)
_FREE: tuple[Transform, Inverse] = (lambda x: x, lambda y: y)
_SENSOR: tuple[Transform, Inverse] = (
    lambda x: MAX_SENSOR_GAIN * torch.sigmoid(x),
    lambda y: _logit(y / MAX_SENSOR_GAIN),
)
CONSTRAINTS: dict[str, tuple[Transform, Inverse]] = {
    "rho_c": _DECAY,
    "alpha_ca": _POSITIVE,
    "k_d": _POSITIVE,
    "s": _SENSOR,
    "b": _FREE,
    "kappa": _POSITIVE,
    "rho_r": _DECAY,
    "r_max": _POSITIVE,
    "lam": _FREE,
    "eps": _POSITIVE,
}


class FatigueCore(nn.Module):
    """Attention core with presynaptic fatigue. State: calcium and pool (B, H, T_key), and what refines them.

    Attributes:
        synapse: list socket of the mechanisms that refine presyn; empty: the plain synapse, on its own fast kernels.
    """

    def __init__(
        self, params: PresynParams, layer: int, num_heads: int, head_dim: int, window: int | None = None
    ) -> None:
        super().__init__()
        self.hp = params
        self.layer = layer
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.window = window
        self.synapse = ListSocket("synapse", layer, num_heads=num_heads, head_dim=head_dim, window=window)
        self.constants = params.kinetics()
        # Vectors, one value per head: no weight decay acts on them. Without calcium its constants have no effect.
        silent = ("rho_c", "alpha_ca", "k_d", "s") if params.release == "age" else ()
        self.learned = tuple(name for name in Kinetics._fields if params.learnable and name not in silent)
        for name in self.learned:
            self.register_parameter(name, nn.Parameter(torch.empty(num_heads)))

    def initialize_parameters(self, draw: Draw) -> None:
        for name in self.learned:
            draw.constant(self.get_parameter(name), CONSTRAINTS[name][1](self.constants[name]))

    def kinetics(self, device: torch.device, dtype: torch.dtype) -> Kinetics:
        """The constants of all heads, each (H,)."""
        # Fixed constants are no buffers: a model in bfloat16 would round its time constants.
        fixed = torch.tensor([self.constants[name] for name in Kinetics._fields], device=device, dtype=dtype)
        rows = fixed[:, None].expand(-1, self.num_heads).unbind(0)
        return Kinetics(
            *(
                CONSTRAINTS[name][0](self.get_parameter(name).to(dtype)) if name in self.learned else row
                for name, row in zip(Kinetics._fields, rows, strict=True)
            )
        )

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        ctx: Context,
        state: State | None,
        *,
        bias: Tensor | None,
        window: int | None,
    ) -> tuple[Tensor, State]:
        """q (B, H, T, D), k and v (B, H_kv, T_key, D) -> (B, H, T, D) and the state of the keys that may be seen."""
        tk = k.shape[2]
        kinetics = self.kinetics(q.device, precision(q))
        options: dict[str, Any] = {
            "rule": self.hp.rule,
            "release": self.hp.release,
            "segments_q": ctx.segments_q,
            "segments_k": None if ctx.segments_k is None else ctx.segments_k[:, -tk:],
            "window": window,
            "bias": bias,
        }
        refinements, own = self._refinements(q, ctx, state)
        if self.synapse:
            out, after = synapse(q, k, v, kinetics, refinements, state or None, **options)
        else:
            out, after = fatigue_attention(q, k, v, kinetics, state or None, **options)
        if ctx.vitals is not None:
            self._report(q, k, bias, ctx, window, kinetics, refinements, after)
        held = after["pool"].shape[2]
        keep = tk if window is None else min(tk, window - 1)
        return out, {name: x[:, :, held - keep :] for name, x in after.items()} | own

    def _refinements(self, q: Tensor, ctx: Context, state: State | None) -> tuple[Refinements, State]:
        """What the parts in the socket ``synapse`` make of this pass, and their own states by mechanism."""
        fields, after = {}, {}
        for name, part in self.synapse.items():
            fields[name], part_state = part(q, ctx, None if state is None else state.get(name))
            if part_state:
                after[name] = part_state
        return Refinements(**fields), after

    @torch.no_grad()
    def _report(
        self,
        q: Tensor,
        k: Tensor,
        bias: Tensor | None,
        ctx: Context,
        window: int | None,
        kinetics: Kinetics,
        refinements: Refinements,
        after: State,
    ) -> None:
        """Vitals of the keys that the last query sees, had it come a second time."""
        tq, tk, held = q.shape[2], k.shape[2], after["pool"].shape[2]
        dtype = precision(q)
        batch, heads, _, dim = q.shape
        last = q[:, :, -1].to(dtype).view(batch, k.shape[1], -1, dim) * dim**-0.5
        logits = (last @ k[:, :, tk - held :].to(dtype).mT).view(batch, heads, held)
        if bias is not None:
            logits = logits + bias.to(dtype).expand(batch, heads, tq, tk)[:, :, -1, tk - held :]
        mask = ctx.mask(window, tk)
        seen = torch.ones_like(logits, dtype=torch.bool)
        if mask is not None:
            seen = mask[:, :, -1, tk - held :].expand_as(logits)
        kin, refined = reference.spread(kinetics, 1), refinements.spread(1)
        distance = torch.arange(held, 0, -1, device=q.device) - 1
        n, then, released = reference.step(
            logits, seen, after, kin, refined, self.hp.rule, self.hp.release, tq - 1, distance
        )
        pool = after["pool"]
        depleted = released.demand >= pool if self.hp.rule == "min" else pool < kin.r_max / 2
        spike = logits.exp().masked_fill(~seen, 0.0)
        plain, tired = spike / spike.sum(-1, keepdim=True), n / n.sum(-1, keepdim=True)
        live = seen.sum()
        values = {
            "depleted": (depleted & seen).sum() / live,
            "pool": ((pool / kin.r_max) * seen).sum() / live,
            "calcium": (after["calcium"] * seen).sum() / live,
            "shift": 0.5 * (plain - tired).abs().sum(-1).mean(),
        }
        for name, value in values.items():
            ctx.report("presyn", name, value, self.layer)
        parts: list[Any] = list(self.synapse.parts.values())
        for part in parts:
            part.report(ctx, after, then, released, seen)

    def forget(self, name: str) -> None:
        """Do not learn this constant: a refinement has taken its place."""
        if name in self.learned:
            self.learned = tuple(other for other in self.learned if other != name)
            delattr(self, name)

    def flops_per_token(self, seq_len: int) -> float:
        # as plain attention, and the kinetics of the visible pairs
        return self.num_heads * visible_keys(seq_len, self.window) * (4.0 * self.head_dim + ELEMENTWISE_FLOPS)

    def extra_repr(self) -> str:
        return f"rule={self.hp.rule}, release={self.hp.release}, learnable={self.hp.learnable}"


def synapses(body: Body) -> list[FatigueCore]:
    """The cores that a mechanism which refines presyn plugs into; none where presyn's strength is 0."""
    parts = [socket.part for socket in body.sockets("attention_core")]
    return [part for part in parts if isinstance(part, FatigueCore)]


@register
class Presyn(Mechanism):
    """Presynaptic fatigue in every attention layer."""

    name = "presyn"
    summary = "attention whose synapses tire: calcium-driven release from a depleting vesicle pool per key"
    source = "Tsodyks and Markram, PNAS 94 (1997) 719; Sudhof, Annu. Rev. Neurosci. 27 (2004) 509"
    sockets = ("attention_core",)
    Params = PresynParams
    ops = ("fatigue_attention",)
    state = "calcium and pool per layer, each (B, H, T_key) float32: 8 bytes per key and query head"
    neutral: ClassVar[dict[str, Any]] = {"strength": 0.0}
    vital_names: ClassVar[dict[str, str]] = {
        "depleted": "share of the visible keys that are depleted: pool below demand (rule mul: below half)",
        "pool": "mean pool of the visible keys, as a fraction of r_max",
        "calcium": "mean calcium of the visible keys",
        "shift": "total variation between the weights and the plain softmax, for the last query",
    }

    def plug(self, body: Body) -> None:
        hp: PresynParams = self.hp
        for socket in body.sockets("attention_core"):
            if socket.max_logit is None:
                raise ConfigError(
                    "model.qk_norm = false leaves the attention logits unbounded, which presynaptic kinetics cannot "
                    "take: set model.qk_norm=true"
                )
            if socket.max_logit > MAX_LOGIT:
                raise ConfigError(
                    f"model.head_dim = {socket.head_dim} lets attention logits reach {socket.max_logit:.0f}: it must "
                    f"be at most {MAX_LOGIT**2:.0f}, where they stay within {MAX_LOGIT:.0f}"
                )
            if hp.strength == 0 and not hp.learnable:
                socket.plug(self, socket.part)  # plain attention, bit for bit
            else:
                socket.plug(self, FatigueCore(hp, socket.layer, socket.num_heads, socket.head_dim, socket.window))

    def pictures(self, states: Sequence[Mapping[str, Any]]) -> dict[str, Picture]:
        """Per layer and head the calcium and the vesicle pool of every key (columns) after every query (rows)."""
        shown: dict[str, Picture] = {}
        for label, held in find(states, "calcium", "pool"):
            for name, unit in (("calcium", "calcium"), ("pool", "vesicles")):
                shown[f"{name}_{label}"] = Picture(over_time([s[name] for s in held]), "query", "key", unit=unit)
        return shown
