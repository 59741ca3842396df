"""diversity: every neuron answers to the environment in its own way, by a fixed sensitivity.

    d_i = exp(N(-sd^2 / 2, sd^2)),  mean 1

Drawn once, never trained, kept in checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from bouton.mechanisms.base import Mechanism
from bouton.mechanisms.parameters import Params, real
from bouton.mechanisms.registry import register

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bouton.mechanisms.vitals import Vitals
    from bouton.models.body import Body
    from bouton.models.initialize import Draw


@dataclass(frozen=True)
class DiversityParams(Params):
    """Parameters of :class:`Diversity`."""

    sd: float = real(0.5, "standard deviation of the logarithm of the sensitivities", low=0)


class Personality(nn.Module):
    """The part in one sensitivity socket."""

    d: Tensor

    def __init__(self, sd: float, layer: int, width: int) -> None:
        super().__init__()
        self.sd, self.layer = sd, layer
        self.register_buffer("d", torch.empty(width))

    @torch.no_grad()
    def initialize_parameters(self, draw: Draw) -> None:
        draw.normal(self.d, 1.0, "d")
        self.d.mul_(self.sd).sub_(self.sd**2 / 2).exp_()

    def forward(self) -> Tensor:
        """(width,) sensitivities."""
        return self.d


@register
class Diversity(Mechanism):
    """Log-normal sensitivities of neurons to the environment."""

    name = "diversity"
    summary = "fixed log-normal sensitivity of each neuron to the environment's stress"
    source = "Padmanabhan and Urban 2010 (intrinsic diversity of neurons)"
    sockets = ("sensitivity",)
    refines = ("environment", "lif")
    Params = DiversityParams
    neutral: ClassVar[Mapping[str, Any] | None] = {"sd": 0.0}
    vital_names: ClassVar[Mapping[str, str]] = {"spread": "standard deviation of the sensitivities of a layer"}

    def __init__(self, params: DiversityParams | None = None) -> None:
        super().__init__(params)
        self._personalities: list[Personality] = []  # they belong to the body's tree

    def plug(self, body: Body) -> None:
        for socket in body.sockets("sensitivity"):
            part = Personality(self.hp.sd, socket.layer, socket.width)
            socket.plug(self, part)
            self._personalities.append(part)

    def report(self, vitals: Vitals) -> None:
        for part in self._personalities:
            vitals.add(self.name, "spread", part.d.std(correction=0), part.layer)
