"""genome: every expert of a mixture has a genome, which is decoded to its kinetics.

    z = tanh(D Xi_e)                                  D: fixed orthonormal rows; Xi (slots, xi_dim) is learned
    tax_e = exp(range z_0) / mean over the living     relative tax, mean 1
    tau_e = tau_fatigue exp(range z_1)                time constant of the fatigue
    gain_e = exp(range z_2)                           factor of the expert's bias on the router

The bias that the router uses is computed from these in the forward pass, from what the last step left: so the loss has
a gradient with respect to Xi, and the organism state is updated with the same values. A clone inherits the genome with
mutations; where experts merge, so do their genomes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from bouton.mechanisms.base import Mechanism
from bouton.mechanisms.economy import ExpertTrait, Kinetics
from bouton.mechanisms.parameters import Params, integer, real
from bouton.mechanisms.registry import register
from bouton.models.expert_rows import blend_row, copy_row

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch.optim import Optimizer

    from bouton.mechanisms.vitals import Vitals
    from bouton.models.body import Body
    from bouton.models.initialize import Draw

_TRAITS = 3


@dataclass(frozen=True)
class GenomeParams(Params):
    """Parameters of :class:`Genome`."""

    xi_dim: int = integer(8, "length of a genome", low=_TRAITS)
    range: float = real(0.7, "largest change of a constant, as a logarithm; 0 leaves it out", low=0, high=2)
    std: float = real(0.5, "standard deviation of the initial genomes", low=0, low_open=True)
    mutation: float = real(0.1, "standard deviation of the mutations of a clone", low=0)


class ExpertGenome(ExpertTrait):
    """The part in one kinetics socket.

    Attributes:
        xi: (slots, xi_dim) the genomes.
        decoder: (3, xi_dim) fixed orthonormal rows.
    """

    decoder: Tensor

    def __init__(self, hp: GenomeParams, slots: int, tau_fatigue: float) -> None:
        super().__init__()
        self.hp, self.tau_fatigue = hp, tau_fatigue
        self.xi = nn.Parameter(torch.empty(slots, hp.xi_dim))
        self.register_buffer("decoder", torch.empty(_TRAITS, hp.xi_dim))

    def initialize_parameters(self, draw: Draw) -> None:
        draw.normal(self.xi, self.hp.std, "xi")
        draw.orthogonal(self.decoder, "decoder")

    def forward(self, alive: Tensor) -> Kinetics:
        """alive (slots,) -> kinetics of all slots."""
        with torch.autocast(self.xi.device.type, enabled=False):
            tax, tau, gain = (self.hp.range * (self.xi @ self.decoder.T).tanh()).exp().unbind(-1)
        mean = (tax * alive).sum() / alive.sum()
        return Kinetics(tax / mean, torch.exp(-1 / (self.tau_fatigue * tau)), gain)

    def inherit(self, parent: int, child: int, draw: Draw, optimizer: Optimizer | None) -> None:
        copy_row(self.xi, parent, child, optimizer)
        mutation = torch.empty_like(self.xi[child])
        draw.normal(mutation, self.hp.mutation, "mutation")
        self.xi[child] += mutation

    def absorb(self, expert: int, into: int, share: float, optimizer: Optimizer | None) -> None:
        blend_row(self.xi, expert, into, share, optimizer)


@register
class Genome(Mechanism):
    """Genomes of the experts in every block."""

    name = "genome"
    summary = "learned genomes decoded to the kinetics of the experts of moe"
    source = "Stanley and Miikkulainen 2003 (compact genomes with a decoder)"
    sockets = ("kinetics",)
    refines = ("moe",)
    Params = GenomeParams
    state = "none"
    neutral: ClassVar[Mapping[str, Any] | None] = {"range": 0.0}
    vital_names: ClassVar[Mapping[str, str]] = {
        "tax_std": "standard deviation of the relative tax over the living experts",
        "tau_fatigue": "mean time constant of their fatigue, in optimizer steps",
        "gain_std": "standard deviation of their gain on the router",
        "diversity": "mean distance of a living genome from the mean genome",
    }

    def __init__(self, params: GenomeParams | None = None) -> None:
        super().__init__(params)
        self._parts: list[tuple[ExpertGenome, Any]] = []  # with their sockets; all belong to the body's tree

    def plug(self, body: Body) -> None:
        if self.hp.range == 0:
            return
        for socket in body.sockets("kinetics"):
            part = ExpertGenome(self.hp, socket.slots, socket.moe.hp.tau_fatigue)
            socket.plug(self, part)
            self._parts.append((part, socket))

    @torch.no_grad()
    def report(self, vitals: Vitals) -> None:
        for part, socket in self._parts:
            alive = socket.moe.expert_alive[socket.block]
            kinetics, living = part(alive), alive.bool()
            tax, rho, gain = (torch.as_tensor(v)[living] for v in (kinetics.tax, kinetics.rho, kinetics.gain))
            genomes = part.xi[living]
            vitals.add(self.name, "tax_std", tax.std(correction=0), socket.layer)
            vitals.add(self.name, "tau_fatigue", (-1 / rho.log()).mean(), socket.layer)
            vitals.add(self.name, "gain_std", gain.std(correction=0), socket.layer)
            vitals.add(self.name, "diversity", (genomes - genomes.mean(0)).norm(dim=-1).mean(), socket.layer)
