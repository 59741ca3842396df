"""The plain mixer: a feed-forward block with sockets for its activation, its hidden layer, and its linear maps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from bouton.models.context import Context
from bouton.models.layers import Activation, Linear
from bouton.models.sockets import BranchedLinear, ExclusiveSocket, ListSocket, State

if TYPE_CHECKING:
    from bouton.models.transformer import TransformerConfig


class MixerTail(nn.Module):
    """What every mixer ends with: activation -> gates -> down projection. New mixers reuse it after their own front.

    Args:
        width: size of the hidden layer.
    """

    def __init__(self, config: TransformerConfig, layer: int, width: int) -> None:
        super().__init__()
        self.activation = ExclusiveSocket("activation", layer, Activation(config.activation), width=width)
        self.gates = ListSocket(
            "mixer_gate",
            layer,
            width=width,
            activation=config.activation,
            bias=config.bias,
            std=config.std(width),
        )
        self.down = BranchedLinear(
            width,
            config.hidden_size,
            bias=config.bias,
            site="mixer_down",
            layer=layer,
            std=config.residual_std(width),
        )

    def forward(self, hidden: Tensor, value: Tensor | None, ctx: Context, state: State | None) -> tuple[Tensor, State]:
        """hidden (B, T, width) before the activation; ``value`` multiplies it after (gated mixers), or None."""
        hidden = self.activation(hidden)
        if value is not None:
            hidden = hidden * value
        for _, gate in self.gates.items():
            hidden = gate(hidden, ctx)
        y, after = self.down(hidden, ctx, state)
        return y, after


class MLP(nn.Module):
    """down(f(up(x))); with ``swiglu`` down(silu(gate(x)) * up(x)) (Shazeer 2020)."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        width, std = config.mixer_width, config.std(config.hidden_size)
        self.up = BranchedLinear(config.hidden_size, width, bias=config.bias, site="mixer_up", layer=layer, std=std)
        gated = config.activation == "swiglu"
        self.gate = Linear(config.hidden_size, width, bias=config.bias, std=std) if gated else None
        self.tail = MixerTail(config, layer, width)

    def forward(self, x: Tensor, ctx: Context, state: State | None) -> tuple[Tensor, State]:
        """x (B, T, hidden) -> (B, T, hidden), state of the branches."""
        before: State = {} if state is None else state
        hidden, up_state = self.up(x, ctx, before.get("up"))
        if self.gate is None:
            y, down_state = self.tail(hidden, None, ctx, before.get("down"))
        else:
            y, down_state = self.tail(self.gate(x), hidden, ctx, before.get("down"))
        return y, {name: s for name, s in (("up", up_state), ("down", down_state)) if s}
