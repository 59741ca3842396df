"""hebb: fast weights beside a linear map, written while the sequence is read.

    y_t = x_t W + scale * q_t (F_{t-1} + S_{t-1})

F is a fast cache that forgets within ``tau_fast`` tokens, S its consolidated copy that forgets within ``tau_slow``.
Keys and queries are unit vectors, so the branch is bounded whatever the length of the sequence; the values are the
slow output x_t W alone, so it never feeds on itself. Hence what refines hebb (socket ``plasticity``) knows the values
of all tokens before F is computed: it multiplies the learning rate, or gates what enters S.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bouton.errors import ConfigError, SocketError
from bouton.mechanisms import consolidation
from bouton.mechanisms.base import Mechanism
from bouton.mechanisms.consolidation import Consolidation
from bouton.mechanisms.parameters import Params, choice, flag, integer, real
from bouton.mechanisms.pictures import Picture, find
from bouton.mechanisms.registry import register
from bouton.models.layers import Linear
from bouton.models.sockets import ListSocket, State
from bouton.ops.fast_weights import RULES, fast_weights

if TYPE_CHECKING:
    from bouton.models.body import Body
    from bouton.models.context import Context
    from bouton.models.initialize import Draw

SITES = ("attention_output", "mixer_up", "mixer_down")
CHUNK = 32  # tokens; fastest in torch on a CPU, where longer chunks cost more arithmetic than they save calls


@dataclass(frozen=True)
class HebbParams(Params):
    """Parameters of :class:`Hebb`; with ``learnable``, what the rates, time constants and scale of a head start at."""

    rule: str = choice("delta", RULES, "how F is written: product, Oja-bounded product, or error-correcting")
    rank: int = integer(16, "width r of keys and queries, per head", low=1)
    heads: int = integer(4, "number of fast-weight matrices; divides the width of the map's output", low=1)
    site: str = choice("attention_output", SITES, "which linear map of each block gets the branch")
    projection: str = choice("shared", ("shared", "separate"), "one projection of x for queries and keys, or two")
    scale: float = real(1.0, "strength of the branch; 0 leaves it out", low=0)
    eta: float = real(
        0.9, "learning rate of F; delta: at most 1, and less than 1 if learnable", low=0, low_open=True, scale="log"
    )
    tau_fast: float = real(20.0, "time constant of F", unit="tokens", low=0, low_open=True, scale="log")
    tau_slow: float = real(200.0, "time constant of S", unit="tokens", low=0, low_open=True, scale="log")
    eta_s: float = real(0.005, "rate at which F is consolidated into S; 0 turns S off", low=0, scale="log")
    learnable: bool = flag(True, "learn scale, eta, eta_s and both time constants per head")

    def check(self) -> None:
        if self.rule == "delta" and (self.eta > 1 or (self.learnable and self.eta == 1)):
            valid = "> 0 and < 1 where it is learned (learnable = true)" if self.learnable else "> 0 and <= 1"
            raise ConfigError(f"eta = {self.eta:g} is not valid with rule = delta: it must be {valid}")


class Projection(Linear):
    """(B, T, in_features) -> (B, T, heads * rank); starts with orthonormal rows, within each head if not all fit."""

    def __init__(self, in_features: int, heads: int, rank: int) -> None:
        super().__init__(in_features, heads * rank, bias=False, std=0.0)
        self.blocks = 1 if heads * rank <= in_features else heads

    def initialize_parameters(self, draw: Draw) -> None:
        draw.orthogonal(self.weight.view(self.blocks, -1, self.in_features), "weight")


class FastWeights(nn.Module):
    """The part beside one linear map: (B, T, in_features) and its slow output (B, T, out_features) -> an increment."""

    def __init__(self, hp: HebbParams, layer: int, in_features: int, out_features: int) -> None:
        super().__init__()
        if out_features % hp.heads:
            raise ConfigError(
                f"heads = {hp.heads} does not divide the {out_features} output features of {hp.site}: choose a divisor"
            )
        self.hp, self.layer = hp, layer
        self.in_features, self.out_features = in_features, out_features
        self.key = Projection(in_features, hp.heads, hp.rank)
        self.query = Projection(in_features, hp.heads, hp.rank) if hp.projection == "separate" else None
        for name in self._start() if hp.learnable else ():
            self.register_parameter(f"raw_{name}", nn.Parameter(torch.empty(hp.heads)))
        width, consolidates = out_features // hp.heads, hp.eta_s > 0
        self.plasticity = ListSocket("plasticity", layer, heads=hp.heads, width=width, consolidates=consolidates)
        # (out_features, in_features), what was consolidated on request; never part of a checkpoint.
        self.increment: Tensor | None
        self.register_buffer("increment", None, persistent=False)

    def _start(self) -> dict[str, float]:
        names = ("scale", "eta", "tau_fast") + (("tau_slow", "eta_s") if self.hp.eta_s else ())
        return {name: getattr(self.hp, name) for name in names}

    def _bounded(self, name: str) -> bool:
        """Learned within (0, 1), by its logit; the other quantities are positive and learned by their logarithm."""
        return name == "eta" and self.hp.rule == "delta"

    def initialize_parameters(self, draw: Draw) -> None:
        for name, value in self._start().items():
            if (raw := self._learned(name)) is not None:
                draw.constant(raw, math.log(value / (1 - value) if self._bounded(name) else value))

    def _value(self, name: str) -> Tensor | float:
        """(heads,) where learned, else the fixed number."""
        raw = self._learned(name)
        if raw is None:
            return float(getattr(self.hp, name))
        return raw.sigmoid() if self._bounded(name) else raw.exp()

    def _learned(self, name: str) -> nn.Parameter | None:
        return self._parameters.get(f"raw_{name}")

    def _decay(self, name: str) -> Tensor | float:
        tau = self._value(name)
        return torch.exp(-1.0 / tau) if isinstance(tau, Tensor) else math.exp(-1.0 / tau)

    def _unit(self, x: Tensor) -> Tensor:
        """Per head a vector of length 1, in float32 or better."""
        heads = self._heads(x)
        return F.normalize(heads if heads.dtype == torch.float64 else heads.float(), dim=-1)

    def _heads(self, x: Tensor) -> Tensor:
        """(B, T, heads * d) -> (B, heads, T, d)."""
        per_head: Tensor = x.unflatten(-1, (self.hp.heads, -1))
        return per_head.transpose(1, 2)

    def forward(self, x: Tensor, y: Tensor, ctx: Context, state: State | None) -> tuple[Tensor, State]:
        """What is added to ``y``, (B, T, out_features), and F and S, (B, heads, rank, out_features / heads) each."""
        k = self._unit(self.key(x))
        q = k if self.query is None else self._unit(self.query(x))
        v = self._heads(y)
        scale = self._value("scale")
        # The read is linear in the query, which is much narrower than what is read: so the scale goes there.
        q = q * (scale.view(-1, 1, 1).to(q.dtype) if isinstance(scale, Tensor) else scale)
        eta, gate, plastic = self._modulated(v, ctx, None if state is None else state.get("plasticity"))
        read, after = fast_weights(
            q,
            k,
            v,
            eta,
            rho_f=self._decay("tau_fast"),
            rho_s=self._decay("tau_slow"),
            eta_s=self._value("eta_s"),
            gate=gate,
            rule=self.hp.rule,
            state=None if state is None else {name: state[name] for name in ("fast", "slow") if name in state},
            starts=ctx.starts,
            chunk=CHUNK,
        )
        delta = read.transpose(1, 2).flatten(2)
        if self.increment is not None:
            if self.training:
                raise ConfigError(
                    "hebb holds consolidated increments, which are not trained: call its forget(body) first"
                )
            delta = delta + F.linear(x, self.increment.to(x.dtype)).to(delta.dtype)
        if ctx.vitals is not None:
            self._report(ctx, y, delta, after)
        return delta, {**after, "plasticity": plastic} if plastic else after

    def queries(self, x: Tensor) -> Tensor:
        """x (B, T, in_features) -> (B, heads, T, rank), the queries before they are normalised."""
        return self._heads((self.key if self.query is None else self.query)(x))

    def strength(self) -> Tensor:
        """The scale of every head, (heads,)."""
        return torch.as_tensor(self._value("scale"), device=self.key.weight.device).expand(self.hp.heads)

    def effective(self, fast: Tensor) -> Tensor:
        """The change of the linear map that fast weights amount to for inputs whose keys have length 1.

        Args:
            fast: (B, heads, rank, out_features / heads), F or S.

        Returns:
            (B, in_features, out_features): per head the projection of the queries, transposed, times ``fast``; its
            columns of one head span at most ``rank`` dimensions.
        """
        rows = (self.key if self.query is None else self.query).weight.unflatten(0, (self.hp.heads, self.hp.rank))
        return torch.einsum("hri,bhrd->bihd", rows.to(fast.dtype), fast).flatten(2)

    def _modulated(self, v: Tensor, ctx: Context, state: State | None) -> tuple[Tensor | float, Tensor | None, State]:
        """Learning rate and gate of the consolidation, (B, heads, T) where they vary, and the state of the refiners."""
        rate = self._value("eta")
        eta: Tensor | float = rate.view(-1, 1) if isinstance(rate, Tensor) else rate
        gate: Tensor | None = None
        after: State = {}
        for name, part in self.plasticity.items():
            gain, opening, part_state = part(v, ctx, None if state is None else state.get(name))
            if gain is not None:
                eta = gain * eta
            if opening is not None:
                gate = opening if gate is None else gate * opening
            if part_state:
                after[name] = part_state
        if (dopamine := ctx.signals.get("dopamine")) is not None:
            eta = dopamine.unsqueeze(1) * eta
        return eta, gate, after

    def _report(self, ctx: Context, y: Tensor, delta: Tensor, after: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name in ("fast", "slow"):
                norm = after[name].float().norm(dim=(-2, -1)).mean() if name in after else 0.0
                ctx.report(Hebb.name, f"{name}_norm", norm, self.layer)
            ctx.report(Hebb.name, "contribution", delta.float().norm() / y.float().norm().clamp_min(1e-12), self.layer)

    def flops_per_token(self, seq_len: int) -> float:
        """Of the chunkwise form (backend torch), without the projections (they count themselves)."""
        chunk, width, out = min(CHUNK, seq_len), self.hp.heads * self.hp.rank, self.out_features
        boundary = 2.0 * self.hp.rank * out * (4 if self.hp.eta_s else 2)
        within = 2.0 * chunk * (width + out)
        if self.hp.rule == "delta":
            within += 2.0 * chunk * width + chunk * (width + out)
            boundary += 2.0 * self.hp.rank * out
        return boundary + within


def plasticity_sockets(body: Body) -> list[Any]:
    """The ``plasticity`` sockets of the fast weights in ``body``; none where the scale of hebb is 0."""
    return [part.plasticity for part in body.modules() if isinstance(part, FastWeights)]


@register
class Hebb(Mechanism):
    """Fast weights beside a linear map of every block."""

    name = "hebb"
    summary = "fast Hebbian weights with consolidation beside a linear map"
    source = "Ba et al. 2016 (fast weights); Oja 1982; Schlag, Irie and Schmidhuber 2021 (delta rule)"
    sockets = ("branch",)
    Params = HebbParams
    ops = ("fast_weights",)
    state = "fast (and slow, if eta_s > 0): (B, heads, rank, out / heads) float32 per layer"
    neutral: ClassVar[Mapping[str, Any] | None] = {"scale": 0.0}
    vital_names: ClassVar[Mapping[str, str]] = {
        "fast_norm": "Frobenius norm of F after the last token, mean over heads and sequences",
        "slow_norm": "the same of S",
        "contribution": "norm of what the branch adds / norm of the slow output",
    }

    def __init__(self, params: HebbParams | None = None) -> None:
        super().__init__(params)
        self._consolidated: list[Consolidation] = []

    def plug(self, body: Body) -> None:
        hp = self.hp
        if hp.scale == 0:
            return
        sockets: list[Any] = [socket for socket in body.sockets("branch") if socket.site == hp.site]
        if not sockets:
            present = sorted({socket.site for socket in body.sockets("branch")})
            raise SocketError(
                f"mechanism 'hebb': site = {hp.site} does not exist in this body; it has {', '.join(present)}"
            )
        for socket in sockets:
            socket.plug(self, FastWeights(hp, socket.layer, socket.in_features, socket.out_features))

    def consolidate(self, body: Body, state: State, tokens: Tensor, row: int = 0) -> tuple[State, Consolidation]:
        """Turn the S of one row into a lasting part of the linear maps; only on request, and only at inference.

        Args:
            body: the model that holds this mechanism, in evaluation mode.
            state: what the body returned.
            tokens: (T,) int64, text of the kind that it reads (say what the row has read of late): the lengths of its
                keys set the scale of the increment, and the error is measured on it.
            row: whose S; all rows read what is learned from it.

        Returns:
            ``state`` with the S of that row at 0; the increments with their errors, which :meth:`forget` takes back.

        Raises:
            ConfigError: the body is in training mode, or S is turned off.
        """
        after, found = consolidation.extract(body, state, tokens, row)
        self.hold(body, found)
        return after, found

    def hold(self, body: Body, found: Consolidation) -> None:
        """Let the branches add increments, for example loaded ones; the weights of the body stay as they are."""
        consolidation.hold(body, [*self._consolidated, found])
        self._consolidated.append(found)

    def forget(self, body: Body, found: Consolidation | None = None) -> None:
        """Take ``found`` (None: everything) back: the model is again, bit for bit, what it was without it.

        Raises:
            ConfigError: it is not held.
        """
        kept = [] if found is None else [other for other in self._consolidated if other is not found]
        if found is not None and len(kept) == len(self._consolidated):
            raise ConfigError("forget: these increments are not held (never added, or taken back before)")
        consolidation.hold(body, kept)
        self._consolidated = kept

    def pictures(self, states: Sequence[Mapping[str, Any]]) -> dict[str, Picture]:
        """Per layer the Frobenius norms of F and S of every head (rows) after every token (columns)."""
        shown: dict[str, Picture] = {}
        for name in ("fast", "slow") if self.hp.eta_s else ("fast",):
            for label, held in find(states, name):
                norms = torch.stack([s[name].detach().float().norm(dim=(-2, -1)) for s in held], dim=1)
                shown[f"{name}_norm_{label}"] = Picture(norms, "head", "token", unit="norm")
        return shown
