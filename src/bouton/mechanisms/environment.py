"""environment: one stress for the whole model, from how badly it has been predicting, raises the gain of its neurons.

    ema   <- decay ema + (1 - decay) loss of the last step       at first ln(vocabulary), a uniform guess
    sigma  = clip(ema / ln(vocabulary), 0, 1)
    gain_i = 1 + gamma sigma d_i                                 d = 1, or what ``diversity`` says

sigma is organism state: constant within a step, kept in checkpoints, the same on all ranks, frozen in evaluation and
generation. No gradient passes through it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from bouton.mechanisms.base import Mechanism
from bouton.mechanisms.parameters import Params, real
from bouton.mechanisms.registry import register
from bouton.models.sockets import ExclusiveSocket

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bouton.mechanisms.vitals import Vitals
    from bouton.models.body import Body


@dataclass(frozen=True)
class EnvironmentParams(Params):
    """Parameters of :class:`Environment`."""

    gamma: float = real(0.5, "gain that full stress adds to a neuron of sensitivity 1", low=0)
    decay: float = real(0.99, "share of the average loss that is left after a step", unit="per step", low=0, high=1)


class EqualSensitivity(nn.Module):
    """The plain sensitivity: 1 for every neuron."""

    def forward(self) -> float:
        return 1.0


class Gain(nn.Module):
    """The part in one gain socket, with a socket for the neurons' sensitivities."""

    def __init__(self, environment: Environment, layer: int, width: int) -> None:
        super().__init__()
        self._environment = [environment]  # it belongs to the body
        self.sensitivity = ExclusiveSocket("sensitivity", layer, EqualSensitivity(), width=width)
        self.width = width

    def forward(self) -> Tensor:
        """(width,), what currents are multiplied by."""
        environment = self._environment[0]
        gain: Tensor = 1 + environment.hp.gamma * environment.stress() * self.sensitivity()
        return gain.expand(self.width)


@register
class Environment(Mechanism):
    """A global stress that scales the input currents of all spiking neurons."""

    name = "environment"
    summary = "global stress, the running training loss, that raises the gain of spiking neurons"
    source = "Aston-Jones and Cohen 2005 (adaptive gain by a global neuromodulator)"
    sockets = ("gain",)
    refines = ("lif",)
    Params = EnvironmentParams
    neutral: ClassVar[Mapping[str, Any] | None] = {"gamma": 0.0}
    vital_names: ClassVar[Mapping[str, str]] = {"stress": "running loss / ln(vocabulary), within 0 and 1"}

    def __init__(self, params: EnvironmentParams | None = None) -> None:
        super().__init__(params)
        self.organism_state("level", (), 1.0)  # ema / ln(vocabulary)
        self.uniform_loss = 1.0

    def plug(self, body: Body) -> None:
        self.uniform_loss = math.log(max(2, body.vocab_size))
        for socket in body.sockets("gain"):
            socket.plug(self, Gain(self, socket.layer, socket.width))

    def stress(self) -> Tensor:
        """sigma, a scalar."""
        return self.get_buffer("level").clamp(0.0, 1.0)

    def observe_loss(self, total: Tensor, count: Tensor) -> None:
        self.observe("loss", total, count)

    def update_organism(self, means: Mapping[str, Tensor]) -> None:
        level = self.get_buffer("level")
        level.mul_(self.hp.decay).add_(means["loss"].to(level.dtype) / self.uniform_loss, alpha=1 - self.hp.decay)

    def report(self, vitals: Vitals) -> None:
        vitals.add(self.name, "stress", self.stress(), -1)
