"""sparse: a learned gate on the mixer's hidden layer that silences the units whose drive stays below a threshold.

    dense    v = sigmoid(G x);       g = sigmoid(slope (v - threshold));   y = f(M (x * g))
    scalar   v = w * x + b per unit; g as above;                           y = f(x * g)

f is the body's activation, or the one that a mechanism plugs into the gate's activation socket. The soft gate never
reaches 0, and nothing is skipped in the computation: this is a model of sparse firing, no saving. With ``hard`` the
gate is the mask [v > threshold] and its gradient that of the soft gate (straight-through).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from bouton.mechanisms.base import Mechanism
from bouton.mechanisms.parameters import Params, choice, flag, real
from bouton.mechanisms.registry import register
from bouton.models.layers import Activation, Linear
from bouton.models.sockets import ExclusiveSocket

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bouton.models.body import Body
    from bouton.models.context import Context
    from bouton.models.initialize import Draw


@dataclass(frozen=True)
class SparseParams(Params):
    """Parameters of :class:`Sparse`."""

    gate: str = choice("dense", ("dense", "scalar"), "drive from all units and a transform, or from the unit itself")
    threshold: float = real(0.25, "drive above which a unit counts as active")
    slope: float = real(5.0, "steepness of the gate at the threshold", low=0, low_open=True, scale="log")
    hard: bool = flag(False, "mask the units below the threshold to 0, with a straight-through gradient")


class ScalarDrive(nn.Module):
    """v = w * x + b per unit. It starts near the resting drive of the dense gate, sigmoid(0) = 1/2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width))

    def initialize_parameters(self, draw: Draw) -> None:
        draw.normal(self.weight, 0.02, "weight")
        draw.constant(self.bias, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight + self.bias


class SparseGate(nn.Module):
    """The part in one ``mixer_gate`` socket, with an activation socket of its own."""

    def __init__(self, hp: SparseParams, layer: int, width: int, activation: str, bias: bool, std: float) -> None:
        super().__init__()
        self.hp, self.layer = hp, layer
        dense = hp.gate == "dense"
        self.drive = Linear(width, width, bias=bias, std=std) if dense else ScalarDrive(width)
        self.transform = Linear(width, width, bias=bias, std=std) if dense else None
        self.activation = ExclusiveSocket("activation", layer, Activation(activation), width=width)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """x (B, T, width) -> the same shape."""
        drive = self.drive(x)
        if self.transform is not None:
            drive = torch.sigmoid(drive)
        gate = torch.sigmoid(self.hp.slope * (drive - self.hp.threshold))
        if self.hp.hard:
            # The bracket is exactly 0: the value is the mask, the gradient that of the soft gate.
            gate = (drive > self.hp.threshold).to(gate.dtype) + (gate - gate.detach())
        if ctx.vitals is not None:
            active = (drive.detach() > self.hp.threshold).float().mean()
            ctx.report(Sparse.name, "active_fraction", active, self.layer)
            ctx.report(Sparse.name, "silent_fraction", 1 - active, self.layer)
            ctx.report(Sparse.name, "mean_gate", gate.detach().float().mean(), self.layer)
        hidden = x * gate
        y: Tensor = self.activation(hidden if self.transform is None else self.transform(hidden))
        return y


@register
class Sparse(Mechanism):
    """Threshold gate on the hidden layer of every mixer."""

    name = "sparse"
    summary = "threshold gate with a transform on the mixer's hidden layer"
    source = "Bengio, Leonard and Courville 2013 (gated units, straight-through gradient); Olshausen and Field 1996"
    sockets = ("mixer_gate",)
    Params = SparseParams
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {"scalar": {"gate": "scalar"}}
    skips: ClassVar[Mapping[str, str]] = {
        "zero_strength_is_plain": "the gate applies an activation of its own: even fully open it is not the identity"
    }
    vital_names: ClassVar[Mapping[str, str]] = {
        "active_fraction": "share of units whose drive is above the threshold",
        "silent_fraction": "share of units whose drive is not",
        "mean_gate": "mean value of the gate",
    }

    def plug(self, body: Body) -> None:
        for socket in body.sockets("mixer_gate"):
            part = SparseGate(self.hp, socket.layer, socket.width, socket.activation, socket.bias, socket.std)
            socket.plug(self, part)
