"""ca_init: the automata against their rule tables, the spread of every matrix, what is filled and what is not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bouton.mechanisms import Vitals
from bouton.mechanisms.ca_init import RULES, AutomatonWeights, CAInitParams, evolve, spectral_norm
from bouton.models.body import Body
from bouton.models.build import build
from bouton.models.initialize import Draw, initialize

MODEL = {"vocab_size": 64, "num_layers": 2, "hidden_size": 64, "num_heads": 4, "max_seq_len": 64}


def model_with(mechanism: dict[str, dict[str, Any]], seed: int = 3, **model: Any) -> Body:
    return build({"model": {**MODEL, **model}, "mechanism": mechanism, "seed": seed})


def matrices(model: Body) -> dict[str, Tensor]:
    return {n: p.detach() for n, p in model.named_parameters() if n.startswith("layers.") and p.dim() == 2}


def test_rule_30_draws_its_known_triangle() -> None:
    first = torch.zeros(9, dtype=torch.int64)
    first[4] = 1
    expected = ["000010000", "000111000", "001100100", "011011110"]
    assert ["".join(str(int(cell)) for cell in row) for row in evolve(first, 4, 30)] == expected


@pytest.mark.parametrize("rule", RULES.values())
def test_every_cell_follows_its_neighbourhood_on_the_ring(rule: int) -> None:
    first = torch.randint(2, (3, 11), generator=torch.Generator().manual_seed(0))
    grid = evolve(first, 20, rule)
    assert grid.shape == (3, 20, 11)
    for t in range(19):
        for i in range(11):
            left, centre, right = grid[1, t, i - 1], grid[1, t, i], grid[1, t, (i + 1) % 11]
            assert grid[1, t + 1, i] == int(f"{rule:08b}"[7 - int(4 * left + 2 * centre + right)])


def test_rule_116_only_moves_once_it_has_settled_and_rule_30_never_settles() -> None:
    first = torch.randint(2, (256,), generator=torch.Generator().manual_seed(0))
    for name, rule in RULES.items():
        settled = evolve(first, 420, rule)[400:]
        moved = [torch.equal(settled[t + 1], settled[t].roll(1)) for t in range(19)]
        assert all(moved) if name == "rule116" else not any(moved)


@pytest.mark.parametrize("values", [{}, {"rule": "rule116"}, {"strength": 0.3}, {"burn_in": 50}])
def test_every_matrix_keeps_the_spread_of_its_default(values: dict[str, Any]) -> None:
    plain, filled = matrices(model_with({})), matrices(model_with({"ca_init": values}))
    for name, default in plain.items():
        assert not torch.equal(filled[name], default)
        assert filled[name].double().std().item() == pytest.approx(default.double().std().item(), rel=1e-6), name


def test_full_strength_is_two_valued_and_centred() -> None:
    for name, weight in matrices(model_with({"ca_init": {}})).items():
        assert len(weight.unique()) == 2, name
        assert abs(weight.double().mean().item()) < 1e-6 * weight.abs().max().item()


def test_the_share_of_the_variance_is_the_strength() -> None:
    plain = matrices(model_with({}))["layers.0.mixer.part.up.linear.weight"].flatten()
    for strength in (0.2, 0.7):
        mixed = matrices(model_with({"ca_init": {"strength": strength}}))["layers.0.mixer.part.up.linear.weight"]
        cosine = torch.nn.functional.cosine_similarity(mixed.flatten(), plain, dim=0).item()
        assert cosine == pytest.approx((1 - strength) ** 0.5, abs=0.02)


def test_embedding_head_norms_and_biases_are_as_ever() -> None:
    options = {"tied_embeddings": False, "bias": True, "position": "learned", "norm": "layernorm"}
    plain, filled = model_with({}, **options).state_dict(), model_with({"ca_init": {}}, **options).state_dict()
    changed = {name for name, tensor in plain.items() if not torch.equal(tensor, filled[name])}
    assert changed == {name for name, tensor in plain.items() if name.startswith("layers.") and tensor.dim() == 2}
    assert "embedding.weight" in plain and "head.weight" in plain and "position.weight" in plain


def test_orthonormal_projections_stay_orthonormal() -> None:
    model = model_with({"ca_init": {}, "hebb": {}})
    key = model.layers[0].attention.output.branch.parts["hebb"].key.weight  # type: ignore[index, union-attr]
    assert torch.allclose(key @ key.mT, torch.eye(len(key)), atol=1e-5)
    assert torch.equal(
        key, dict(model_with({"hebb": {}}).named_parameters())["layers.0.attention.output.branch.parts.hebb.key.weight"]
    )


def test_seed_and_name_decide() -> None:
    first, again, other = (matrices(model_with({"ca_init": {}}, seed=seed)) for seed in (3, 3, 4))
    deeper = matrices(model_with({"ca_init": {}, "septin": {}}, seed=3, num_layers=2))
    for name, weight in first.items():
        assert torch.equal(weight, again[name]) and torch.equal(weight, deeper[name])
        assert not torch.equal(weight, other[name])
    query, key = first["layers.0.attention.query.weight"], first["layers.0.attention.key.weight"]
    assert not torch.equal(query.sign(), key.sign())


def test_batches_of_matrices_are_filled_one_by_one() -> None:
    experts = torch.nn.Parameter(torch.empty(3, 20, 12))
    Draw(0, "layers.0.mixer", AutomatonWeights(CAInitParams())).normal(experts, 0.1, "weight")
    plain = torch.empty(3, 20, 12)
    Draw(0, "layers.0.mixer").normal(plain, 0.1, "weight")
    assert torch.allclose(experts.std(dim=(1, 2)), plain.std(dim=(1, 2)), rtol=1e-5)
    assert all(len(expert.unique()) == 2 for expert in experts)
    assert not torch.equal(experts[0].sign(), experts[1].sign())


def test_only_what_is_a_parameter_of_a_block_is_filled() -> None:
    """Not the ingredients that a module draws to put a parameter together from."""
    draw, plain = Draw(0, "layers.0.mixer", AutomatonWeights(CAInitParams())), torch.empty(8, 8)
    Draw(0, "layers.0.mixer").normal(plain, 0.1, "weight")
    ingredient, shifted = torch.empty(8, 8), torch.nn.Parameter(torch.empty(8, 8))
    draw.normal(ingredient, 0.1, "weight")
    assert torch.equal(ingredient, plain)
    draw.normal(shifted, 0.1, "weight", mean=1.0)
    assert torch.allclose(shifted, 1 + plain, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (3, 2), (0, 4)])
def test_small_matrices_do_not_hang_and_stay_finite(shape: tuple[int, int]) -> None:
    weight = torch.nn.Parameter(torch.empty(shape))
    Draw(0, "layers.0", AutomatonWeights(CAInitParams(burn_in=3))).normal(weight, 0.1, "weight")
    assert weight.isfinite().all()


def test_zero_strength_plugs_nothing() -> None:
    off = model_with({"ca_init": {"strength": 0.0}})
    assert not any(isinstance(module, AutomatonWeights) for module in off.modules())
    assert all(torch.equal(a, b) for a, b in zip(off.parameters(), model_with({}).parameters(), strict=True))


def test_power_iteration_finds_the_spectral_norm() -> None:
    matrix = torch.randn(2, 40, 30, generator=torch.Generator().manual_seed(0))
    exact = torch.linalg.matrix_norm(matrix, ord=2)
    assert torch.allclose(spectral_norm(matrix, torch.Generator().manual_seed(0)), exact, rtol=0.03)


def test_vitals_tell_the_rules_apart() -> None:
    values = {}
    for rule in RULES:
        vitals = Vitals()
        model_with({"ca_init": {"rule": rule}}, hidden_size=128)(torch.zeros(1, 3, dtype=torch.int64), vitals=vitals)
        values[rule] = vitals.mean()
        assert values[rule]["ca_init/std_ratio"].item() == pytest.approx(1.0, abs=1e-6)
    assert values["rule30"]["ca_init/spectral_ratio"].item() == pytest.approx(1.0, abs=0.1)
    assert values["rule116"]["ca_init/spectral_ratio"].item() > 1.2
    for value in values.values():  # at the start the default is a Gaussian matrix of equal spread
        ratio, excess = value["ca_init/spectral_ratio"].item(), value["ca_init/spectral_excess"].item()
        assert excess == pytest.approx(ratio, rel=0.1)


def test_reinitialising_counts_afresh() -> None:
    model = model_with({"ca_init": {}})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    initialize(model, 3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_picture_is_the_matrix() -> None:
    model = model_with({"ca_init": {}})
    shown = model.mechanisms["ca_init"].pictures([])  # type: ignore[operator]
    weight = matrices(model)["layers.0.attention.query.weight"]
    assert torch.equal(shown["weights_attention.query.weight"].values, weight)
