"""The published oscillating models: their sizes, their twins, and what is claimed of them."""

import importlib.util
from pathlib import Path

import pytest
import torch
from scipy import stats

import bouton
from bouton.models.build import build

CLAIMS = Path(__file__).parents[2] / "experiments" / "wiggle" / "claims.py"


def body(experiment, *overrides):
    cfg = bouton.compose(f"experiment=wiggle/{experiment}", *overrides)
    return build(cfg, device="meta"), int(cfg.data.seq_len)


@pytest.mark.parametrize(
    ("experiment", "total", "without_positions"),
    [
        ("v1_83m", 83_451_280, 83_058_064),
        ("v2_45m", 45_702_528, 45_309_312),
        ("v3_124m", 123_697_920, 123_697_920),
        ("v1_83m_gelu", 26_791_296, 26_398_080),
        ("v3_124m_gelu", 123_587_328, 123_587_328),
    ],
)
def test_sizes_to_the_unit(experiment, total, without_positions):
    model, _ = body(experiment)
    assert model.num_parameters() == total
    positions = 0 if model.position is None else model.position.weight.numel()
    assert total - positions == without_positions


def test_the_second_version_at_the_size_of_the_third():
    large = ("model.num_layers=12", "model.hidden_size=768", "model.num_heads=12")
    assert body("v2_45m", *large)[0].num_parameters() == 351_087_360


@pytest.mark.parametrize("version", ["v1_83m", "v2_45m", "v3_124m", "v1_tiny", "v2_tiny", "v3_tiny"])
def test_twins_are_equal_in_what_they_say(version):
    fixed = ("model.vocab_size=50304",)
    model, length = body(version, *fixed)
    shape, _ = body(f"{version}_gelu", *fixed)
    for field in ("num_layers", "hidden_size", "num_heads", "mixer_width", "position", "norm"):
        assert getattr(shape.config, field) == getattr(model.config, field)
    assert shape.config.activation == "gelu" and not shape.mechanism_list()
    parameters, _ = body(f"{version}_gelu_params", *fixed)
    assert abs(parameters.num_parameters() - model.num_parameters()) < 2e-6 * model.num_parameters() + 1
    flops = shape if version.startswith("v3") else body(f"{version}_gelu_flops", *fixed)[0]
    assert flops.flops_per_token(length) == pytest.approx(model.flops_per_token(length), rel=1e-3)


@pytest.mark.parametrize(("position", "invariant"), [("none", True), ("rope", False), ("learned", False)])
def test_the_past_can_be_permuted_only_without_positions(position, invariant):
    """With one block and no positions the order of the earlier tokens tells nothing; a correct rotation tells it."""
    small = ("model.num_layers=1", "model.vocab_size=64", f"model.position={position}")
    model = build(bouton.compose("experiment=wiggle/v3_tiny", *small)).double()
    tokens = torch.randint(64, (2, 12), generator=torch.Generator().manual_seed(0))
    swapped = tokens.clone()
    swapped[:, [2, 7]] = tokens[:, [7, 2]]
    change = (model(tokens)[0][:, -1] - model(swapped)[0][:, -1]).abs().max().item()
    assert (change < 1e-12) if invariant else (change > 1e-4)


@pytest.fixture(scope="module")
def claims():
    spec = importlib.util.spec_from_file_location("claims", CLAIMS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_modular_addition_is_learned_better_than_by_relu(claims):
    oscillating, relu = (claims.modular(n, 16, held_out=False, steps=600).numpy() for n in ("oscillating", "relu"))
    assert oscillating.mean() < 0.6 * relu.mean()
    assert stats.ttest_rel(oscillating, relu).pvalue < 0.001


def test_one_oscillating_unit_solves_xor(claims):
    assert claims.xor("oscillating", 64, steps=600) >= 0.99
    assert claims.xor("gelu", 64, steps=600) > 0.5
    assert claims.xor("relu", 64, steps=600) == 0.0
