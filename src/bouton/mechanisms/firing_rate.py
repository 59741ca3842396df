"""firing_rate: a loss that draws every neuron's rate towards a target.

    loss = weight * mean over layers and neurons of (rate - target)^2

The rate is the mean over the tokens of the global batch, by an all-reduce that gradients pass through, so N ranks
compute what one would. With gradient accumulation each micro-batch has a loss of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bouton.mechanisms.base import Mechanism
from bouton.mechanisms.parameters import Params, real
from bouton.mechanisms.registry import register

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bouton.mechanisms.vitals import Vitals
    from bouton.models.body import Body


@dataclass(frozen=True)
class FiringRateParams(Params):
    """Parameters of :class:`FiringRate`."""

    weight: float = real(10.0, "strength of the loss (lambda)", low=0)
    target: float = real(0.1, "rate that neurons are drawn to", unit="spikes per token", low=0, high=1)


class RateMeter(nn.Module):
    """The part in one spikes socket: keeps the last pass's rates."""

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.rate: Tensor | None = None

    def forward(self, spikes: Tensor) -> None:
        self.rate = spikes.mean(dim=(0, 1), dtype=torch.promote_types(spikes.dtype, torch.float32))


@register
class FiringRate(Mechanism):
    """Penalty on firing rates away from a target, per neuron."""

    name = "firing_rate"
    summary = "loss that draws every spiking neuron's firing rate towards a target"
    source = "Zenke and Vogels 2021 (activity regularisation of spiking networks); Attwell and Laughlin 2001 (its cost)"
    sockets = ("spikes",)
    refines = ("lif",)
    Params = FiringRateParams
    neutral: ClassVar[Mapping[str, Any] | None] = {"weight": 0.0}
    vital_names: ClassVar[Mapping[str, str]] = {"distance": "root mean square distance of the rates from the target"}

    def __init__(self, params: FiringRateParams | None = None) -> None:
        super().__init__(params)
        self._meters: list[RateMeter] = []  # they belong to the body's tree
        self.needs_graph = self.hp.weight > 0

    def plug(self, body: Body) -> None:
        for socket in body.sockets("spikes"):
            part = RateMeter(socket.layer)
            socket.plug(self, part)
            self._meters.append(part)

    def auxiliary_loss(self) -> Tensor | None:
        rates = [meter.rate for meter in self._meters if meter.rate is not None]
        if not rates:
            return None
        rate = torch.stack(rates)
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            from torch.distributed.nn.functional import all_reduce

            rate = all_reduce(rate) / dist.get_world_size()
        loss: Tensor = self.hp.weight * (rate - self.hp.target).square().mean()
        return loss

    def report(self, vitals: Vitals) -> None:
        for meter in self._meters:
            if meter.rate is not None:
                distance = (meter.rate.detach() - self.hp.target).square().mean().sqrt()
                vitals.add(self.name, "distance", distance, meter.layer)
