"""oscillate: an activation with a frequency and a phase per neuron.

    f_i(x) = sin(omega_i x + phi_i) tanh(x) + baseline_i

Near 0 it is sin(phi) x + omega cos(phi) x^2: with a small phase an even bump, so one unit separates XOR. The
derivative grows with omega. (omega, phi) -> (-omega, -phi) and phi -> phi + pi only flip the sign of the wave, so the
sign of omega and the coverage of phi mean nothing by themselves; a unit with omega = 0 and sin(phi) = 0 is constant,
hence dead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from bouton.mechanisms.base import Mechanism
from bouton.mechanisms.parameters import Params, flag, real
from bouton.mechanisms.registry import register
from bouton.ops.oscillate import oscillate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bouton.mechanisms.vitals import Vitals
    from bouton.models.body import Body
    from bouton.models.initialize import Draw

_DEAD = 0.1  # |omega| and |sin(phi)| below this: the wave hardly moves


def dead_units(omega: Tensor, phi: Tensor) -> Tensor:
    """Whether a unit's wave hardly moves: |omega| and |sin(phi)| are small. Shapes (width,), bool."""
    return (omega.abs() < _DEAD) & (phi.sin().abs() < _DEAD)


@dataclass(frozen=True)
class OscillateParams(Params):
    """Parameters of :class:`Oscillate`."""

    omega_mean: float = real(1.0, "mean of the initial frequencies", unit="rad per unit of x")
    omega_std: float = real(0.1, "standard deviation of the initial frequencies", unit="rad per unit of x", low=0)
    phi_std: float = real(0.1, "standard deviation of the initial phases around 0", unit="rad", low=0)
    learnable: bool = flag(True, "learn frequencies, phases and baseline; false: they stay as drawn")
    baseline: bool = flag(True, "add a learned offset per neuron, 0 at first (none where nothing is learned)")


class Oscillation(nn.Module):
    """The part in one activation socket. ``omega``, ``phi``, ``baseline`` are vectors, which weight decay spares."""

    omega: Tensor
    phi: Tensor
    baseline: Tensor | None

    def __init__(self, hp: OscillateParams, layer: int, width: int) -> None:
        super().__init__()
        self.hp, self.layer = hp, layer
        for name in ("omega", "phi"):
            if hp.learnable:
                self.register_parameter(name, nn.Parameter(torch.empty(width)))
            else:
                self.register_buffer(name, torch.empty(width))
        learned = hp.baseline and hp.learnable
        self.register_parameter("baseline", nn.Parameter(torch.empty(width)) if learned else None)

    def initialize_parameters(self, draw: Draw) -> None:
        draw.normal(self.omega, self.hp.omega_std, "omega", mean=self.hp.omega_mean)
        draw.normal(self.phi, self.hp.phi_std, "phi")
        if self.baseline is not None:
            draw.constant(self.baseline, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., width) -> the same shape."""
        return oscillate(x, self.omega, self.phi, self.baseline)

    def extra_repr(self) -> str:
        return f"width={self.omega.shape[0]}, learnable={self.hp.learnable}"


@register
class Oscillate(Mechanism):
    """Oscillating activation in every activation socket: that of the mixer and those inside its gates."""

    name = "oscillate"
    summary = "activation sin(omega x + phi) tanh(x) + baseline, learned per neuron"
    source = "Parascandolo, Huttunen and Virtanen 2016; Sitzmann et al. 2020 (periodic activations)"
    sockets = ("activation",)
    Params = OscillateParams
    ops = ("oscillate",)
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {"fixed": {"learnable": False, "omega_std": 0.5}}
    skips: ClassVar[Mapping[str, str]] = {
        "zero_strength_is_plain": "it replaces the activation: no frequency and phase turn it into the plain one"
    }
    vital_names: ClassVar[Mapping[str, str]] = {
        "dead_fraction": f"share of neurons with |omega| < {_DEAD} and |sin(phi)| < {_DEAD}: constant output",
        "omega_mean": "mean frequency",
        "omega_std": "standard deviation of the frequencies",
        "phi_std": "standard deviation of the phases",
    }

    def __init__(self, params: OscillateParams | None = None) -> None:
        super().__init__(params)
        self._oscillations: list[Oscillation] = []  # a plain list: the parts belong to the body's tree, not to this one

    def plug(self, body: Body) -> None:
        for socket in body.sockets("activation"):
            part = Oscillation(self.hp, socket.layer, socket.width)
            socket.plug(self, part)
            self._oscillations.append(part)

    @torch.no_grad()
    def report(self, vitals: Vitals) -> None:
        for part in self._oscillations:
            omega, phi = part.omega.detach(), part.phi.detach()
            vitals.add(self.name, "dead_fraction", dead_units(omega, phi).float().mean(), part.layer)
            vitals.add(self.name, "omega_mean", omega.mean(), part.layer)
            vitals.add(self.name, "omega_std", omega.std(correction=0), part.layer)
            vitals.add(self.name, "phi_std", phi.std(correction=0), part.layer)
