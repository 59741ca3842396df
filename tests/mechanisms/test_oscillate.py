"""oscillate: initialisation, what is trained, vitals, and what one unit can compute."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bouton.mechanisms import Vitals
from bouton.models.body import Body
from bouton.models.build import build
from bouton.ops.oscillate import oscillate

MODEL = {"vocab_size": 11, "num_layers": 2, "hidden_size": 128, "num_heads": 2, "max_seq_len": 16}


def model_with(**values: Any) -> Body:
    return build({"model": MODEL, "mechanism": {"oscillate": values}, "seed": 3})


def tensors(model: Body, name: str) -> dict[str, Tensor]:
    named = [*model.named_parameters(), *model.named_buffers()]
    return {key: value for key, value in named if key.endswith(f".{name}") and "activation" in key}


def test_frequencies_and_phases_are_drawn_as_told() -> None:
    model = model_with(omega_mean=2.0, omega_std=0.3, phi_std=0.2)
    (omega, other), (phi, _) = tensors(model, "omega").values(), tensors(model, "phi").values()
    assert omega.shape == (512,)
    assert abs(omega.mean() - 2.0) < 0.05 and abs(omega.std() - 0.3) < 0.03
    assert abs(phi.mean()) < 0.05 and abs(phi.std() - 0.2) < 0.02
    assert not torch.equal(omega, other)
    assert all(not b.any() for b in tensors(model, "baseline").values())


def test_fixed_oscillations_are_buffers_with_the_same_numbers() -> None:
    learned, fixed = model_with(), model_with(learnable=False)
    assert not any("activation" in name for name, _ in fixed.named_parameters())
    for name, omega in tensors(learned, "omega").items():
        assert torch.equal(fixed.get_buffer(name), omega)
    assert fixed.num_parameters() == learned.num_parameters() - 2 * 3 * 512


def test_nothing_of_it_is_decayed() -> None:
    model = model_with()
    vectors = [t for name in ("omega", "phi", "baseline") for t in tensors(model, name).values()]
    assert len(vectors) == 6 and all(t.dim() == 1 for t in vectors)


def test_dead_units_are_counted() -> None:
    model = model_with(omega_std=0.0, phi_std=0.0)
    for omega, phi in zip(tensors(model, "omega").values(), tensors(model, "phi").values(), strict=True):
        with torch.no_grad():
            omega[:128] = 0.05  # a quarter has no frequency ...
            phi[:64] = torch.pi  # ... of which half are at a zero of the sine ...
            phi[64:128] = torch.pi / 2  # ... and half are +-tanh units, which live
    vitals = Vitals()
    model(torch.zeros(1, 4, dtype=torch.int64), vitals=vitals)
    values = vitals.mean()
    assert abs(values["oscillate/dead_fraction"] - 64 / 512) < 1e-6
    assert abs(values["oscillate/omega_mean"] - (0.75 + 0.25 * 0.05)) < 1e-6
    assert set(vitals.per_layer()["oscillate/omega_std"]) == {0, 1}


def train_xor(activation: Any, extra: list[Tensor], seeds: int) -> float:
    """Share of initialisations from which one unit with an affine readout learns XOR; all seeds train at once."""
    generator = torch.Generator().manual_seed(0)
    x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    y = torch.tensor([0.0, 1.0, 1.0, 0.0])[:, None].expand(4, seeds)
    w = torch.randn(2, seeds, generator=generator).requires_grad_()
    b, c = torch.zeros(seeds, requires_grad=True), torch.zeros(seeds, requires_grad=True)
    a = torch.ones(seeds, requires_grad=True)
    optimizer = torch.optim.Adam([w, b, a, c, *extra], lr=0.1)
    for _ in range(500):
        optimizer.zero_grad()
        logits = a * activation(x @ w + b) + c
        torch.nn.functional.binary_cross_entropy_with_logits(logits, y, reduction="sum").backward()
        optimizer.step()
    with torch.no_grad():
        right = ((a * activation(x @ w + b) + c) > 0) == (y > 0.5)
    return right.all(dim=0).float().mean().item()


def test_one_unit_learns_xor_and_a_monotone_one_does_not() -> None:
    """It follows from the even bump near 0; GELU, not being monotone, can do it as well, only less often."""
    seeds = 64
    generator = torch.Generator().manual_seed(1)
    omega = (1 + 0.1 * torch.randn(seeds, generator=generator)).requires_grad_()
    phi = (0.1 * torch.randn(seeds, generator=generator)).requires_grad_()
    assert train_xor(lambda x: oscillate(x, omega, phi), [omega, phi], seeds) >= 0.99
    assert train_xor(torch.nn.functional.gelu, [], seeds) > 0.5
    assert train_xor(torch.tanh, [], seeds) == 0.0
