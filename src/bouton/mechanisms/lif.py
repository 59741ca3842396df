"""lif: leaky integrate-and-fire neurons as the mixer of every block.

    I_t = W_in x_t + b_in + W_rec s_{t-1} + b_rec
    u_t = beta u_{t-1} + I_t - theta s_{t-1},   s_t = 1[u_t > theta]
    y_t = sigmoid(W_g x_t + b_g) s_t

x is what every mixer gets, the normalised stream. Tokens are time steps: the membrane potential remembers. A spike's
derivative is a surrogate's, so gradients are not those of the function. The body ``model=spiking`` is made of the same
layers. ``environment``, ``firing_rate`` and ``homeostasis`` refine them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from bouton.mechanisms.base import Mechanism
from bouton.mechanisms.parameters import Params, choice, flag, real
from bouton.mechanisms.registry import register
from bouton.models.neurons import LIFLayer, report_activity
from bouton.ops.lif import RESETS, SURROGATES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bouton.models.body import Body
    from bouton.models.context import Context
    from bouton.models.sockets import State
    from bouton.models.transformer import TransformerConfig


@dataclass(frozen=True)
class LIFParams(Params):
    """Parameters of :class:`LIF`."""

    gated: bool = flag(True, "multiply the spikes by a learned gate of the input")
    surrogate: str = choice("atan", tuple(SURROGATES), "derivative of a spike")
    alpha: float | None = real(None, "sharpness of the surrogate; null: its default", low=0, low_open=True)
    reset: str = choice("subtract", RESETS, "what a spike does to the membrane potential")


class SpikingMixer(nn.Module):
    """The part in one mixer socket: as many neurons as the stream is wide."""

    def __init__(self, hp: LIFParams, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.neurons = LIFLayer(
            config.hidden_size, config.hidden_size, layer=layer, gated=hp.gated, surrogate=hp.surrogate,
            alpha=hp.alpha, reset=hp.reset,
        )  # fmt: skip

    def forward(self, x: Tensor, ctx: Context, state: State | None) -> tuple[Tensor, State]:
        """x (B, T, hidden) -> (B, T, hidden), membrane potentials and last spikes."""
        y, spikes, after = self.neurons(x, x, ctx, state)
        report_activity(LIF.name, spikes, ctx, self.layer)
        return y, after


@register
class LIF(Mechanism):
    """Spiking neurons in the mixer socket of every block."""

    name = "lif"
    summary = "mixer of leaky integrate-and-fire neurons with recurrent spikes"
    source = "Lapicque 1907; Gerstner et al. 2014; Neftci, Mostafa and Zenke 2019 (surrogate gradients)"
    sockets = ("mixer",)
    Params = LIFParams
    ops = ("lif",)
    state = "per layer membrane potential u and last spikes s, both (B, hidden)"
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "plain": {"gated": False, "surrogate": "triangle", "reset": "zero"},
    }
    skips: ClassVar[Mapping[str, str]] = {
        "zero_strength_is_plain": "it replaces the mixer: no parameter turns spikes into the plain block",
        "gradients_are_exact": "a spike has no derivative: its surrogate is checked against the op's definition",
    }
    vital_names: ClassVar[Mapping[str, str]] = {
        "rate": "mean share of tokens at which a neuron fires",
        "dead_fraction": "share of neurons that fire at less than 0.2 % of the tokens",
    }

    def plug(self, body: Body) -> None:
        for socket in body.sockets("mixer"):
            socket.plug(self, SpikingMixer(self.hp, socket.config, socket.layer))
