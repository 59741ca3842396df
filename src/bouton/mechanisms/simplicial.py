"""simplicial: attention to pairs of keys, beside attention to single ones or in its place.

    context = plain(q, k, v) + strength * sum_ij softmax_ij(<q_t, k_i, k'_j> / sqrt(D)) (v_i * v'_j)

The first key and value of a pair are those of the body, the second ones linear maps of them over all heads. All three
factors of the trilinear form are free of positions: the part turns queries and keys back by the angles by which the
body turned them (a rotation, so nothing is lost but rounding), after whatever other mechanisms did to the keys. What
they add to the scores of single keys is added for both keys of a pair.
:mod:`bouton.ops.simplicial_attention.reference` has the equations, with documents and windows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bouton.errors import ConfigError
from bouton.mechanisms.base import Mechanism
from bouton.mechanisms.parameters import Params, choice, flag, integer, real
from bouton.mechanisms.registry import register
from bouton.models.context import Context
from bouton.models.layers import Linear, rotate
from bouton.models.sockets import ExclusiveSocket, State
from bouton.ops.simplicial_attention import simplicial_attention, simplicial_weights

if TYPE_CHECKING:
    from bouton.mechanisms.vitals import Vitals
    from bouton.models.body import Body
    from bouton.models.initialize import Draw


@dataclass(frozen=True)
class SimplicialParams(Params):
    """Parameters of :class:`Simplicial`."""

    w1: int = integer(32, "window of the first key, the query's own token included", unit="tokens", low=1)
    w2: int = integer(8, "window of the second key; the cost is that of w1 w2 keys", unit="tokens", low=1)
    combine: str = choice("add", ("add", "replace"), "beside the body's own core, or in its place")
    strength: float = real(1.0, "factor of the pairs' context; 0 leaves it out", low=0)
    learnable: bool = flag(True, "learn the strength, per head")
    every: int = integer(1, "every n-th block has it", unit="blocks", low=1)

    def check(self) -> None:
        if self.combine == "replace" and self.strength == 0:
            raise ConfigError(
                "strength = 0 with combine = replace leaves no attention: it must be > 0, or combine = add"
            )


class SimplicialCore(nn.Module):
    """The part in one ``attention_core`` socket.

    State: keys and values of both windows and their validity, see :func:`bouton.ops.simplicial_attention`.
    """

    def __init__(self, hp: SimplicialParams, socket: ExclusiveSocket) -> None:
        super().__init__()
        self.hp, self.layer = hp, socket.layer
        self.num_heads, self.num_kv_heads, self.head_dim = socket.num_heads, socket.num_kv_heads, socket.head_dim
        self.rope_base: float | None = socket.rope_base
        self.normalised = socket.max_logit is not None
        # A body with a window shows no query what lies before it.
        self.w1, self.w2 = (w if socket.window is None else min(w, socket.window) for w in (hp.w1, hp.w2))
        width = self.num_kv_heads * self.head_dim
        self.plain = socket.part if hp.combine == "add" else None
        self.key = Linear(width, width, bias=False, std=1 / math.sqrt(width))
        self.value = Linear(width, width, bias=False, std=1 / math.sqrt(width))
        self.strength = nn.Parameter(torch.empty(self.num_heads)) if hp.learnable else None

    def initialize_parameters(self, draw: Draw) -> None:
        if self.strength is not None:
            draw.constant(self.strength, self.hp.strength)

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
        """q (B, H, T, D), k and v (B, H_kv, T_key, D) -> (B, H, T, D)."""
        tokens = q.shape[2]
        queries, k1, v1 = q, k[:, :, -tokens:], v[:, :, -tokens:]
        if self.rope_base is not None:
            cos, sin = ctx.rotation(self.head_dim, self.rope_base, q.dtype)
            queries, k1 = rotate(queries, cos, -sin), rotate(k1, cos, -sin)
        k2, v2 = self._mapped(self.key, k1), self._mapped(self.value, v1)
        if self.normalised:
            k2 = F.rms_norm(k2, (self.head_dim,))
        biases = [None if bias is None else _by_place(bias, w, tokens) for w in (self.w1, self.w2)]
        given: dict[str, Any] = {"starts": ctx.starts, "bias1": biases[0], "bias2": biases[1], "state": state}
        pairs, after = simplicial_attention(queries, k1, v1, k2, v2, self.w1, self.w2, **given)
        strength = self.hp.strength if self.strength is None else self.strength[:, None, None].to(pairs.dtype)
        context = added = strength * pairs
        if self.plain is not None:
            # The body's own core has no state.
            context = self.plain(q, k, v, ctx, None, bias=bias, window=window)[0] + added
        if ctx.vitals is not None:
            self._report(ctx, added, context, simplicial_weights(queries, k1, k2, self.w1, self.w2, **given))
        return context, after

    def _mapped(self, linear: Linear, x: Tensor) -> Tensor:
        """A linear map of x (B, H_kv, T, D) over all heads."""
        y: Tensor = linear(x.transpose(1, 2).flatten(2)).to(x.dtype)
        return y.view(*y.shape[:2], self.num_kv_heads, self.head_dim).transpose(1, 2)

    @torch.no_grad()
    def _report(self, ctx: Context, added: Tensor, context: Tensor, weights: Tensor) -> None:
        """``weights`` (B, H, T, w2, w1)."""
        first, second = weights.sum(-2), weights.sum(-1)
        joint = _entropy(weights.flatten(-2))
        values = {
            "contribution": added.norm() / context.norm().clamp_min(1e-12),
            "pairs": joint.exp().mean(),
            "interaction": (_entropy(first) + _entropy(second) - joint).mean(),
        }
        for name, value in values.items():
            ctx.report(Simplicial.name, name, value, self.layer)

    def flops_per_token(self, seq_len: int) -> float:
        """Of the pairs alone: the projections and the core beside it count themselves."""
        t = range(1, seq_len + 1)
        pairs = sum(min(i, self.w1) * min(i, self.w2) for i in t) / seq_len
        second = sum(min(i, self.w2) for i in t) / seq_len
        # one product with each window of first keys and values; query times second keys, read times second values
        return float(self.num_heads * self.head_dim * (4.0 * pairs + 3.0 * second))

    def extra_repr(self) -> str:
        return f"w1={self.w1}, w2={self.w2}, combine={self.hp.combine}"


def _entropy(weights: Tensor) -> Tensor:
    """Of distributions over the last dimension, in nats."""
    return -torch.xlogy(weights, weights).sum(-1)


def _by_place(bias: Tensor, window: int, tokens: int) -> Tensor:
    """Score terms (., ., T, T_key) -> those of the last ``window`` keys of a query, oldest first: (., ., T, window)."""
    bias = F.pad(bias, (window, 0))  # what lies before the first key is not seen
    query = torch.arange(tokens, device=bias.device)[:, None] + bias.shape[-1] - tokens
    place = torch.arange(1 - window, 1, device=bias.device)
    return bias.gather(-1, (query + place).expand(*bias.shape[:2], -1, -1))


@register
class Simplicial(Mechanism):
    """2-simplicial attention in every n-th block."""

    name = "simplicial"
    summary = "attention to pairs of keys by a trilinear form"
    source = "Clift, Doryn, Murfet and Wallbridge 2019 (2-simplicial transformer); Roy et al. 2025 (fast and simplex)"
    sockets = ("attention_core",)
    Params = SimplicialParams
    ops = ("simplicial_attention",)
    state = "per layer the last w1 - 1 and w2 - 1 position-free keys and values (B, H_kv, w - 1, D) and their validity"
    neutral: ClassVar[Mapping[str, Any] | None] = {"strength": 0.0}
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "replace": {"combine": "replace", "w1": 5, "w2": 3},
        "second": {"every": 2, "w1": 3, "w2": 6, "learnable": False, "strength": 0.5},
    }
    vital_names: ClassVar[Mapping[str, str]] = {
        "contribution": "norm of the pairs' context, with its strength / norm of the whole context",
        "pairs": "how many pairs a query attends to: exp of the entropy of its weights, mean over queries",
        "interaction": "mutual information of first and second key under the weights, in nats; 0 if they factorise",
    }

    def plug(self, body: Body) -> None:
        hp: SimplicialParams = self.hp
        sockets = [s for s in body.sockets("attention_core") if (s.layer + 1) % hp.every == 0]
        if not sockets:
            raise ConfigError(
                f"every = {hp.every} leaves none of the {body.num_layers} blocks: it must be at most {body.num_layers}"
            )
        for socket in sockets:
            socket.plug(self, socket.part if hp.strength == 0 else SimplicialCore(hp, socket))

    def report(self, vitals: Vitals) -> None:
        if self.hp.strength == 0:
            for name in self.vital_names:
                vitals.add(self.name, name, 0.0, -1)
