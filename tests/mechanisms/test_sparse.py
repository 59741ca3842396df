"""sparse: its equations, the three vitals on known layers, hard masks with a straight-through gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bouton.mechanisms import Vitals
from bouton.mechanisms.oscillate import Oscillation
from bouton.mechanisms.sparse import ScalarDrive, SparseGate, SparseParams
from bouton.models.build import build
from bouton.models.context import Context
from bouton.models.initialize import initialize

WIDTH = 10


def gate_with(width: int = WIDTH, **values: Any) -> SparseGate:
    gate = SparseGate(SparseParams(**values), 0, width, "gelu", bias=False, std=0.3)
    initialize(gate, 0)
    return gate.double()


def context(vitals: Vitals | None = None) -> Context:
    return Context(torch.arange(5)[None], vitals=vitals)


def sample(width: int = WIDTH) -> Tensor:
    return torch.randn(2, 5, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def read_vitals(gate: SparseGate, x: Tensor) -> dict[str, float]:
    vitals = Vitals()
    gate(x, context(vitals))
    return {name.removeprefix("sparse/"): value.item() for name, value in vitals.mean().items()}


def test_dense_gate_equals_its_equations() -> None:
    gate, x = gate_with(slope=3.0, threshold=0.4), sample()
    assert gate.transform is not None and not isinstance(gate.drive, ScalarDrive)
    v = torch.sigmoid(x @ gate.drive.weight.T)
    g = 1 / (1 + torch.exp(-3.0 * (v - 0.4)))
    expected = torch.nn.functional.gelu((x * g) @ gate.transform.weight.T)
    assert torch.allclose(gate(x, context()), expected, atol=1e-14, rtol=0)


def test_scalar_gate_equals_its_equations_and_has_no_matrix() -> None:
    gate, x = gate_with(gate="scalar", slope=3.0), sample()
    assert isinstance(gate.drive, ScalarDrive) and gate.transform is None
    g = torch.sigmoid(3.0 * (x * gate.drive.weight + gate.drive.bias - 0.25))
    assert torch.allclose(gate(x, context()), torch.nn.functional.gelu(x * g), atol=1e-14, rtol=0)
    assert sum(p.numel() for p in gate.parameters()) == 2 * WIDTH


@pytest.mark.parametrize("kind", ["dense", "scalar"])
def test_every_unit_is_active_at_initialisation(kind: str) -> None:
    body = build(
        {
            "model": {"vocab_size": 11, "num_layers": 2, "hidden_size": 32, "num_heads": 2, "init_std": 0.02},
            "mechanism": {"sparse": {"gate": kind}},
        }
    )
    vitals = Vitals()
    body(torch.randint(11, (2, 16), generator=torch.Generator().manual_seed(0)), vitals=vitals)
    values = vitals.mean()
    assert values["sparse/active_fraction"] == 1.0
    assert values["sparse/silent_fraction"] == 0.0
    assert abs(values["sparse/mean_gate"] - torch.sigmoid(torch.tensor(5 * 0.25))) < 0.05


@pytest.mark.parametrize("hard", [False, True])
def test_a_layer_with_a_tenth_of_its_units_above_the_threshold(hard: bool) -> None:
    gate, x = gate_with(width=100, hard=hard), sample(100).abs() + 0.1
    with torch.no_grad():
        assert not isinstance(gate.drive, ScalarDrive)
        gate.drive.weight.fill_(-10.0)
        gate.drive.weight[:10] = 10.0
    values = read_vitals(gate, x)
    assert abs(values["active_fraction"] - 0.1) < 1e-6
    assert abs(values["silent_fraction"] - 0.9) < 1e-6
    open_, shut = (1.0, 0.0) if hard else (1 / (1 + torch.e ** (-5 * 0.75)), 1 / (1 + torch.e ** (5 * 0.25)))
    assert abs(values["mean_gate"] - (0.1 * open_ + 0.9 * shut)) < 1e-6


def test_hard_gate_masks_and_lets_the_soft_gradient_through() -> None:
    soft, hard = gate_with(gate="scalar"), gate_with(gate="scalar", hard=True)
    for gate in (soft, hard):
        gate.activation.part = torch.nn.Identity()
        with torch.no_grad():
            gate.drive.weight.fill_(1.0)
            gate.drive.bias.fill_(0.0)
    x = sample()
    mask = (x > 0.25).double()
    assert torch.equal(hard(x, context()), x * mask)
    for gate in (soft, hard):
        gate(x, context()).sum().backward()
    # d(x g)/dw = x dg/dw, and dg/dw is that of the soft gate in both
    assert soft.drive.weight.grad is not None and hard.drive.weight.grad is not None
    assert torch.allclose(hard.drive.weight.grad, soft.drive.weight.grad, atol=1e-13, rtol=0)


def test_vitals_do_not_synchronise_the_device_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(self: Tensor) -> float:
        raise AssertionError("item() in a forward pass")

    monkeypatch.setattr(Tensor, "item", forbidden)
    gate_with()(sample(), context())
    gate_with()(sample(), context(Vitals()))


def test_an_activation_mechanism_reaches_into_the_gate() -> None:
    body = build(
        {
            "model": {"vocab_size": 11, "num_layers": 2, "hidden_size": 16, "num_heads": 2},
            "mechanism": {"sparse": {}, "oscillate": {}},
        }
    )
    gates = [module for module in body.modules() if isinstance(module, SparseGate)]
    assert len(gates) == 2 and all(isinstance(gate.activation.part, Oscillation) for gate in gates)
    assert sum(isinstance(module, Oscillation) for module in body.modules()) == 4
