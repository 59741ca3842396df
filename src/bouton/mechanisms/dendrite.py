"""dendrite: a mixer whose neurons have compartments that see different parts of the input.

    h_k = tanh(A_k x_k)                  compartment k = 1 .. K sees slice x_k of the input, h_k has the full width
    q_l = sum_k Lambda[k, l] h_k         lateral coupling, Lambda = 0.5 I + 0.1 N(0, 1) at first
    y   = down(gates(f(S [h; q])))       soma, activation, gates, down projection

With this linear coupling S [h; q] = (S_a + S_b (Lambda^T (x) I)) h: half of the soma is redundant. ``lateral`` is
``concat`` (as above), ``folded`` (the same function at initialisation with half of the soma's weights), ``tanh`` (q
goes through tanh, so that the coupling means something) or ``off`` (S h).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bouton.errors import ConfigError
from bouton.mechanisms.base import Mechanism
from bouton.mechanisms.parameters import Params, choice, integer, real
from bouton.mechanisms.registry import register
from bouton.models.layers import Linear
from bouton.models.mixers import MixerTail
from bouton.models.sockets import BranchedLinear, State

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bouton.models.body import Body
    from bouton.models.context import Context
    from bouton.models.initialize import Draw
    from bouton.models.transformer import TransformerConfig

_SATURATED = 0.95


@dataclass(frozen=True)
class DendriteParams(Params):
    """Parameters of :class:`Dendrite`."""

    compartments: int = integer(4, "number of dendritic compartments K per neuron", low=1)
    lateral: str = choice("concat", ("concat", "folded", "tanh", "off"), "coupling between compartments")
    ratio: float | None = real(None, "width / hidden_size; null: model.mixer_ratio", low=0, low_open=True)


def fold(soma: Tensor, lateral: Tensor) -> Tensor:
    """The soma (width, 2 K O) over [h; q] as one over h alone, (width, K O), for the coupling ``lateral`` (K, K)."""
    direct, coupled = soma.unflatten(-1, (2, lateral.shape[0], -1)).unbind(-3)
    folded: Tensor = direct + torch.einsum("kl,wlo->wko", lateral, coupled)
    return folded.flatten(-2)


class Soma(Linear):
    """From the compartments' activities (..., K O) to the width O; the lateral coupling belongs to it."""

    lateral: Tensor | None

    def __init__(self, compartments: int, width: int, mode: str, *, bias: bool, std: float) -> None:
        columns = compartments * width
        coupled = mode in ("concat", "tanh")
        super().__init__(2 * columns if coupled else columns, width, bias=bias, std=std)
        self.compartments, self.mode = compartments, mode
        coupling = nn.Parameter(torch.empty(compartments, compartments)) if coupled else None
        self.register_parameter("lateral", coupling)

    def initialize_parameters(self, draw: Draw) -> None:
        super().initialize_parameters(draw)
        if self.mode == "off":
            return
        lateral = torch.empty(self.compartments, self.compartments)
        draw.normal(lateral, 0.1, "lateral")
        lateral += 0.5 * torch.eye(self.compartments)
        if self.lateral is not None:
            draw.constant(self.lateral, lateral)
        else:
            # The tensors that `concat` would get, folded: paired runs of both start from the same function.
            both = torch.empty(self.out_features, 2 * self.in_features)
            draw.normal(both, self.std, "weight")
            draw.constant(self.weight, fold(both.double(), lateral.double()))

    def forward(self, h: Tensor) -> Tensor:
        """h (..., K O) -> (..., O)."""
        if self.lateral is not None:
            q = torch.einsum("...ko,kl->...lo", h.unflatten(-1, (self.compartments, -1)), self.lateral).flatten(-2)
            h = torch.cat((h, q.tanh() if self.mode == "tanh" else q), dim=-1)
        return F.linear(h, self.weight, self.bias)

    def flops_per_token(self, seq_len: int) -> float:
        coupling = 2.0 * self.compartments**2 * self.out_features if self.lateral is not None else 0.0
        return 2.0 * self.in_features * self.out_features + coupling


class DendriticMixer(nn.Module):
    """The part in one mixer socket. The soma has the branch socket ``mixer_up``: it reads the compartments.

    Attributes:
        weight: (K, width, slice) the compartments' maps A_k.
        bias: (K, width), or None.
    """

    def __init__(self, hp: DendriteParams, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        count, hidden = hp.compartments, config.hidden_size
        self.layer, self.compartments = layer, count
        self.slice = -(-hidden // count)  # the input is padded with zeros where K does not divide it
        self.padding = self.slice * count - hidden
        if self.padding >= self.slice:
            filled = -(-hidden // self.slice)
            raise ConfigError(
                f"compartments = {count} leaves {count - filled} of them without input (hidden_size = {hidden} in "
                f"slices of {self.slice}): use {filled}"
            )
        ratio = config.mixer_ratio if hp.ratio is None else hp.ratio
        self.width = max(1, round(ratio * hidden))
        self.std = config.std(self.slice)
        self.weight = nn.Parameter(torch.empty(count, self.width, self.slice))
        self.bias = nn.Parameter(torch.empty(count, self.width)) if config.bias else None
        columns = count * self.width
        # `folded` is drawn like `concat`, from the fan-in 2 K O.
        std = config.std(columns if hp.lateral == "off" else 2 * columns)
        self.soma = BranchedLinear(columns, self.width, bias=config.bias, site="mixer_up", layer=layer, std=std)
        self.soma.linear = Soma(count, self.width, hp.lateral, bias=config.bias, std=std)
        self.tail = MixerTail(config, layer, self.width)

    def initialize_parameters(self, draw: Draw) -> None:
        draw.normal(self.weight, self.std, "weight")
        if self.bias is not None:
            draw.constant(self.bias, 0.0)

    def forward(self, x: Tensor, ctx: Context, state: State | None) -> tuple[Tensor, State]:
        """x (B, T, hidden) -> (B, T, hidden), state of the branches."""
        before: State = {} if state is None else state
        slices = F.pad(x, (0, self.padding)).unflatten(-1, (self.compartments, self.slice))
        h = torch.einsum("btkc,koc->btko", slices, self.weight)
        if self.bias is not None:
            h = h + self.bias
        h = torch.tanh(h)
        if ctx.vitals is not None:
            size = h.detach().abs()
            ctx.report(Dendrite.name, "activity", size.float().mean(), self.layer)
            ctx.report(Dendrite.name, "saturation", (size > _SATURATED).float().mean(), self.layer)
        hidden, soma_state = self.soma(h.flatten(-2), ctx, before.get("soma"))
        y, down_state = self.tail(hidden, None, ctx, before.get("down"))
        return y, {name: s for name, s in (("soma", soma_state), ("down", down_state)) if s}

    def flops_per_token(self, seq_len: int) -> float:
        return 2.0 * self.weight.numel()


@register
class Dendrite(Mechanism):
    """A mixer of neurons with dendritic compartments, in every block."""

    name = "dendrite"
    summary = "mixer whose neurons gather the input in non-linear dendritic compartments"
    source = "Poirazi, Brannon and Mel 2003; London and Haeusser 2005 (dendritic computation)"
    sockets = ("mixer",)
    Params = DendriteParams
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "folded": {"lateral": "folded"},
        "tanh": {"lateral": "tanh", "compartments": 3},
        "off": {"lateral": "off", "ratio": 1.5},
    }
    skips: ClassVar[Mapping[str, str]] = {
        "zero_strength_is_plain": "it replaces the mixer: no parameter turns compartments into the plain block"
    }
    vital_names: ClassVar[Mapping[str, str]] = {
        "activity": "mean |tanh| of the compartments",
        "saturation": f"share of compartments with |tanh| > {_SATURATED}",
    }

    def plug(self, body: Body) -> None:
        for socket in body.sockets("mixer"):
            socket.plug(self, DendriticMixer(self.hp, socket.config, socket.layer))
