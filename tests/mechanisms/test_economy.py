"""The equations of the economy by hand."""

from __future__ import annotations

import pytest
import torch

from bouton.mechanisms.economy import Kinetics, advance


def test_energy_and_fatigue_by_hand() -> None:
    energy, fatigue = advance(
        torch.tensor([1.0, 3.9, 0.1]), torch.tensor([1.0, 2.0, 0.0]), torch.tensor([2.0, 9.0, 0.0]), 0.5,
        Kinetics(tax=torch.tensor([1.0, 0.5, 3.0]), rho=0.9, gain=1.0),
    )  # fmt: skip
    assert energy.tolist() == pytest.approx([1.5, 4.0, 0.0])  # clipped at A_max and at 0
    assert fatigue.tolist() == pytest.approx([1.1, 2.7, 0.0])
    rest = torch.ones(1)
    for _ in range(500):
        rest, _ = advance(rest, rest, torch.tensor([1.2]), 0.1, Kinetics(tax=0.8, rho=0.9, gain=1.0))
    assert rest.item() == pytest.approx(1.2 / 0.8)
