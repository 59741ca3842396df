"""homeostasis: thresholds follow the firing rates, so that a neuron that fires too often becomes harder to excite.

    theta_i <- clip(theta_i + eta (rate_i - target), low, high)

once per optimizer step, from the mean rate over the batch of all ranks; no gradient. Thresholds are organism state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from bouton.errors import ConfigError
from bouton.mechanisms.base import Mechanism
from bouton.mechanisms.parameters import Params, real
from bouton.mechanisms.registry import register

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bouton.mechanisms.vitals import Vitals
    from bouton.models.body import Body


@dataclass(frozen=True)
class HomeostasisParams(Params):
    """Parameters of :class:`Homeostasis`."""

    eta: float = real(0.01, "change of a threshold per step and unit of rate", low=0, scale="log")
    target: float = real(0.1, "rate that is aimed at", unit="spikes per token", low=0, high=1)
    low: float = real(0.5, "least threshold", low=0, low_open=True)
    high: float = real(4.0, "greatest threshold", low=0, low_open=True)

    def check(self) -> None:
        if not self.low <= 1 <= self.high:
            raise ConfigError(f"low = {self.low} and high = {self.high} must enclose 1, where thresholds begin")


class Threshold(nn.Module):
    """The part in one threshold socket."""

    def __init__(self, homeostasis: Homeostasis, layer: int) -> None:
        super().__init__()
        self._homeostasis = [homeostasis]  # it belongs to the body
        self.name = f"theta_{layer}"

    def forward(self) -> Tensor:
        """(width,) thresholds."""
        return self._homeostasis[0].get_buffer(self.name)


class RateObserver(nn.Module):
    """The part in one spikes socket."""

    def __init__(self, homeostasis: Homeostasis, layer: int) -> None:
        super().__init__()
        self._homeostasis = [homeostasis]
        self.name = f"rate_{layer}"

    def forward(self, spikes: Tensor) -> None:
        if self.training:
            self._homeostasis[0].observe(self.name, spikes.detach().sum(dim=(0, 1)), spikes.shape[0] * spikes.shape[1])


@register
class Homeostasis(Mechanism):
    """Thresholds of spiking neurons that follow their rates."""

    name = "homeostasis"
    summary = "thresholds of spiking neurons that follow their firing rates"
    source = "Turrigiano 2008 (homeostatic plasticity); Bellec et al. 2018 (adaptive thresholds)"
    sockets = ("threshold", "spikes")
    refines = ("lif",)
    Params = HomeostasisParams
    neutral: ClassVar[Mapping[str, Any] | None] = {"eta": 0.0}
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {"fast": {"eta": 0.5, "low": 0.95, "high": 1.05}}
    vital_names: ClassVar[Mapping[str, str]] = {
        "theta_mean": "mean threshold of a layer",
        "theta_std": "standard deviation of the thresholds of a layer",
    }

    def __init__(self, params: HomeostasisParams | None = None) -> None:
        super().__init__(params)
        self._layers: list[int] = []

    def plug(self, body: Body) -> None:
        for socket in body.sockets("threshold"):
            self._layers.append(socket.layer)
            self.organism_state(f"theta_{socket.layer}", (socket.width,), 1.0)
            socket.plug(self, Threshold(self, socket.layer))
        for socket in body.sockets("spikes"):
            socket.plug(self, RateObserver(self, socket.layer))

    def update_organism(self, means: Mapping[str, Tensor]) -> None:
        for layer in self._layers:
            theta = self.get_buffer(f"theta_{layer}")
            rate = means[f"rate_{layer}"].to(theta.dtype)
            theta.add_(rate - self.hp.target, alpha=self.hp.eta).clamp_(self.hp.low, self.hp.high)

    def report(self, vitals: Vitals) -> None:
        for layer in self._layers:
            theta = self.get_buffer(f"theta_{layer}")
            vitals.add(self.name, "theta_mean", theta.mean(), layer)
            vitals.add(self.name, "theta_std", theta.std(correction=0), layer)
