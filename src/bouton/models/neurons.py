"""A layer of leaky integrate-and-fire neurons with its sockets: the mixer of ``lif`` and the block of the spiking body.

    I_t = W_in x_t + b_in + W_rec s_{t-1} + b_rec
    u_t = beta u_{t-1} + gain I_t - theta s_{t-1},   s_t = 1[u_t > theta]

beta = sigmoid(raw) per neuron. The gain (1) and the threshold theta (1) are sockets; parts may also watch the spikes.
What leaves the layer is gated: sigmoid(W_g h + b_g) s, or the spikes alone.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bouton.models.layers import Linear
from bouton.models.sockets import BranchedLinear, ExclusiveSocket, ListSocket, State
from bouton.ops.lif import rlif_scan

if TYPE_CHECKING:
    from bouton.models.context import Context
    from bouton.models.initialize import Draw

# The logits of beta at first: sigmoid gives 0.73 to 0.95, time constants of 3 to 20 tokens.
RAW_BETA = (1.0, 3.0)


class FixedThreshold(nn.Module):
    """The plain threshold: 1 for every neuron."""

    def forward(self) -> float:
        return 1.0


class Leak(nn.Module):
    """beta per neuron: a sigmoid keeps it in (0, 1) with a gradient everywhere."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.empty(width))

    def initialize_parameters(self, draw: Draw) -> None:
        draw.uniform(self.raw, *RAW_BETA, "raw")

    def forward(self) -> Tensor:
        return torch.sigmoid(self.raw)


class LIFLayer(nn.Module):
    """``width`` recurrent neurons; state: membrane potential u and last spikes s, both (B, width).

    Args:
        in_features: size of what they hear.
        gated: multiply the spikes by sigmoid(W_g h + b_g), W_g (width, gate_features).
        surrogate: derivative of a spike, one of ``bouton.ops.lif.SURROGATES``.
        alpha: its sharpness; None: its default.
        reset: what a spike does to the membrane potential.
    """

    def __init__(
        self,
        in_features: int,
        width: int,
        *,
        layer: int,
        gated: bool,
        surrogate: str,
        alpha: float | None,
        reset: str,
    ) -> None:
        super().__init__()
        self.width, self.layer = width, layer
        self.surrogate, self.alpha, self.reset = surrogate, alpha, reset
        std = 1 / math.sqrt(3 * in_features)  # at this size about every tenth neuron fires before training
        recurrent_std = 1 / math.sqrt(3 * width)
        self.input = BranchedLinear(in_features, width, bias=True, site="mixer_up", layer=layer, std=std)
        self.recurrent = Linear(width, width, bias=True, std=recurrent_std)
        self.leak = Leak(width)
        self.gate = Linear(in_features, width, bias=True, std=std) if gated else None
        self.threshold = ExclusiveSocket("threshold", layer, FixedThreshold(), width=width)
        self.gain = ListSocket("gain", layer, width=width)
        self.spikes = ListSocket("spikes", layer, width=width)

    def forward(self, x: Tensor, h: Tensor, ctx: Context, state: State | None) -> tuple[Tensor, Tensor, State]:
        """What they hear x (B, T, in_features) and what the gate sees h -> output and spikes (B, T, width), state."""
        before: State = {} if state is None else state
        current, branch_state = self.input(x, ctx, before.get("input"))
        current = current + self.recurrent.bias
        gain: Tensor | None = None
        for _, part in self.gain.items():
            gain = part() if gain is None else gain * part()
        spikes, u = rlif_scan(
            current, self.recurrent.weight, self.leak(), self.threshold(), gain, before.get("u"), before.get("s"),
            ctx.starts, reset=self.reset, surrogate=self.surrogate, alpha=self.alpha,
        )  # fmt: skip
        for _, part in self.spikes.items():
            part(spikes)
        after: State = {"u": u, "s": spikes[:, -1]}
        if branch_state:
            after["input"] = branch_state
        y = spikes if self.gate is None else torch.sigmoid(self.gate(h)) * spikes
        return y, spikes, after

    def extra_repr(self) -> str:
        return f"width={self.width}, surrogate={self.surrogate}, reset={self.reset}"


def report_activity(name: str, spikes: Tensor, ctx: Context, layer: int) -> None:
    """The vitals of a layer's spikes (B, T, width): their rate, and the share of neurons that hardly ever fire."""
    if ctx.vitals is not None:
        rate = spikes.detach().float().mean(dim=(0, 1))
        ctx.report(name, "rate", rate.mean(), layer)
        ctx.report(name, "dead_fraction", (rate < 0.002).float().mean(), layer)
