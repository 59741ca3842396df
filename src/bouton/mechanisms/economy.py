"""The economy of experts (:mod:`bouton.mechanisms.moe`): its equations, and the parts that set its constants.

A part in the socket ``kinetics`` gives every expert its constants, one in the socket ``merit`` says what the experts
are worth besides their energy. Both hold something per expert, so they are told when experts split and merge.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from bouton.models.initialize import Draw
    from bouton.models.router import Choice

A_MAX = 4.0


@dataclass(frozen=True)
class Kinetics:
    """What drives the economy of a layer; one value for all experts, or one per slot, (slots,).

    Attributes:
        tax: share of the energy that an expert pays; its mean over the living experts is 1.
        rho: share of the fatigue that is left after a step.
        gain: factor of the expert's bias on the router.
    """

    tax: Tensor | float
    rho: Tensor | float
    gain: Tensor | float


class ExpertTrait(nn.Module):
    """A part that holds something of every expert, in a slot's row. It is told when experts split and merge."""

    def inherit(self, parent: int, child: int, draw: Draw, optimizer: Optimizer | None) -> None:
        """``child`` is a clone of ``parent``; ``draw`` gives random numbers, the same on all ranks."""

    def absorb(self, expert: int, into: int, share: float, optimizer: Optimizer | None) -> None:
        """``into`` consists to the part ``share`` of ``expert`` now, which is gone."""


class PlainKinetics(ExpertTrait):
    """The same for all experts."""

    def __init__(self, tau_fatigue: float) -> None:
        super().__init__()
        self.kinetics = Kinetics(1.0, math.exp(-1 / tau_fatigue), 1.0)

    def forward(self, alive: Tensor) -> Kinetics:
        return self.kinetics


class PlainMerit(ExpertTrait):
    """All experts are equal: their energy alone counts."""

    def see(self, x: Tensor, choice: Choice) -> None:
        """Nothing."""

    def forward(self) -> Tensor | float:
        return 1.0


def advance(energy: Tensor, fatigue: Tensor, use: Tensor, income: float, kinetics: Kinetics) -> tuple[Tensor, Tensor]:
    """Energy and fatigue after a step in which the experts had ``use``, all (..., slots)."""
    energy = (energy + income * (use - kinetics.tax * energy)).clamp(0.0, A_MAX)
    return energy, kinetics.rho * fatigue + (1 - kinetics.rho) * use
