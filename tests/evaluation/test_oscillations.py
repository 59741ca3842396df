"""Frequencies that are parameters, and spectra that are measured on activity."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from bouton.errors import EvaluationError
from bouton.evaluation.oscillations import (
    BANDS,
    band_shares,
    canonical,
    hidden_activity,
    normal_band_shares,
    shuffled,
    shuffled_band,
    slow_share,
    spectrum,
    units,
)
from bouton.models.body import Body
from bouton.models.build import build


def model_with(mechanism: dict[str, Any]) -> Body:
    sizes = {"vocab_size": 11, "num_layers": 2, "hidden_size": 16, "num_heads": 2, "max_seq_len": 32}
    return build({"model": sizes, "mechanism": mechanism, "seed": 3}).eval()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(rows: int = 8, positions: int = 64, width: int = 20) -> torch.Tensor:
    return torch.randn(rows, positions, width, generator=generator(7))


# -- parameters --------------------------------------------------------------------------------------------------------


def test_units_are_those_of_the_model_and_dead_ones_are_told() -> None:
    model = model_with({"oscillate": {}})
    first, second = units(model).values()
    assert (first.layer, second.layer) == (0, 1) and first.omega.shape == (64,)
    part = next(m for m in model.modules() if getattr(m, "omega", None) is not None)
    with torch.no_grad():
        part.omega[:3] = 0.05
        part.phi[0], part.phi[1], part.phi[2] = 0.0, math.pi, math.pi / 2  # the last is a tanh
    changed = next(iter(units(model).values()))
    assert changed.dead.nonzero().flatten().tolist() == [0, 1] and not first.dead.any()
    assert not torch.equal(changed.omega, first.omega), "what was read before is a copy"
    with pytest.raises(EvaluationError, match="mechanism=oscillate"):
        units(model_with({}))


def test_canonical_waves_are_the_same_up_to_their_sign() -> None:
    omega, phi = 3 * torch.randn(200, generator=generator()), 9 * torch.randn(200, generator=generator(1))
    size, phase = canonical(omega, phi)
    assert (size >= 0).all() and (phase >= -math.pi / 2).all() and (phase < math.pi / 2).all()
    x = torch.linspace(-2, 2, 41)[:, None]
    torch.testing.assert_close((size * x + phase).sin().abs(), (omega * x + phi).sin().abs(), rtol=0, atol=2e-5)


def test_bands_before_anything_is_learned() -> None:
    drawn = 1 + 0.1 * torch.randn(100_000, generator=generator())
    expected = normal_band_shares(1.0, 0.1)
    assert expected["alpha"] == pytest.approx(0.9545, abs=1e-4)  # two standard deviations
    found = band_shares(drawn)
    assert sum(found.values()) == pytest.approx(1) and sum(expected.values()) == pytest.approx(1)
    assert found == pytest.approx(expected, abs=3e-3)
    wide = band_shares(2 * torch.randn(100_000, generator=generator()))  # both signs
    assert wide == pytest.approx(normal_band_shares(0.0, 2.0), abs=6e-3)
    assert normal_band_shares(0.5, 0.0) == {name: float(name == "theta") for name in BANDS}


# -- activity ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mechanism", [{}, {"oscillate": {}}, {"oscillate": {}, "sparse": {}}])
def test_activity_is_what_the_activations_put_out(mechanism: dict[str, Any]) -> None:
    model = model_with(mechanism)
    tokens = torch.randint(11, (3, 20), generator=generator())
    found = hidden_activity(model, tokens)
    assert len(found) == (4 if "sparse" in mechanism else 2)
    assert all(values.shape == (3, 20, 64) for values in found.values())
    again = hidden_activity(model, tokens[:, :9])
    for name, values in found.items():
        torch.testing.assert_close(again[name], values[:, :9])  # causal
    assert not any(module._forward_hooks for module in model.modules())


def test_a_rhythm_is_found_at_its_frequency() -> None:
    time = torch.arange(64.0)
    phases = 2 * math.pi * torch.rand(8, 1, 20, generator=generator())
    activity = 5 + 0.01 * torch.sin(2 * math.pi * time[None, :, None] / 8 + phases)
    found = spectrum(activity)
    assert found.frequency[found.power.argmax()] == pytest.approx(1 / 8)
    assert found.power.max() == pytest.approx(32, rel=1e-3) and found.power.sum() == pytest.approx(32, rel=1e-3)
    assert slow_share(activity, 8)[0] == pytest.approx(1, abs=1e-3)
    assert slow_share(activity, 9)[0] == pytest.approx(0, abs=1e-3)


def test_noise_is_flat_and_stays_in_the_band_of_its_shuffles() -> None:
    found = spectrum(noise(rows=40))
    assert found.frequency[0] == pytest.approx(1 / 64) and found.frequency[-1] == 0.5
    assert found.power.mean() == pytest.approx(64 / 63, rel=0.02)
    low, high = shuffled_band(noise(rows=40), generator(), 40)
    assert low < 64 / 63 < high and high - low < 0.5
    assert (found.power > 0.9 * low).all() and (found.power < 1.1 * high).all()
    assert ((found.power - 64 / 63).abs() < 4.5 * found.error).all()
    assert slow_share(noise(rows=40))[0] == pytest.approx(8 / 32, abs=0.02)


def test_slow_drift_leaves_the_band_and_shuffling_takes_it_away() -> None:
    drive, drift = noise(), torch.zeros(8, 64, 20)
    for t in range(1, 64):
        drift[:, t] = 0.9 * drift[:, t - 1] + drive[:, t]
    low, high = shuffled_band(drift, generator(), 40)
    found = spectrum(drift)
    assert found.power[0] > 3 * high and found.power[-1] < low
    mixed = shuffled(drift, generator(5))
    assert torch.equal(mixed.sort(dim=1).values, drift.sort(dim=1).values) and not torch.equal(mixed, drift)
    after = spectrum(mixed)
    assert after.power.max() < 1.3 * high and slow_share(mixed)[0] < 0.5 * slow_share(drift)[0]
    # all units of a row move together, so what they share stays
    assert torch.equal(shuffled(drift, generator(5))[..., 3], mixed[..., 3])


def test_units_that_do_not_change_are_left_out() -> None:
    activity = noise()
    padded = torch.cat((activity, torch.full((8, 64, 5), 3.3)), dim=2)
    torch.testing.assert_close(spectrum(padded).power, spectrum(activity).power)
    for wrong, message in (
        (torch.ones(2, 8, 3), "no unit changes"),
        (torch.ones(8, 3), "must be"),
        (torch.ones(2, 3, 3), "4 positions"),
    ):
        with pytest.raises(EvaluationError, match=message):
            spectrum(wrong)
    with pytest.raises(EvaluationError, match="shuffles = 3"):
        shuffled_band(activity, generator(), 3)
