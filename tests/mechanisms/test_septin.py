"""septin: inhibited keys against the score formula, the barrier, its sequence state, and doing nothing at zero."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bouton.errors import ConfigError
from bouton.mechanisms import Vitals
from bouton.mechanisms.septin import DistanceBarrier, KeyInhibition
from bouton.models.body import Body
from bouton.models.build import build
from bouton.models.context import Context

MODEL = {"vocab_size": 11, "num_layers": 2, "hidden_size": 16, "num_heads": 4, "num_kv_heads": 2, "max_seq_len": 64}


def model_with(mechanism: dict[str, dict[str, Any]], **model: Any) -> Body:
    return build({"model": {**MODEL, **model}, "mechanism": mechanism, "seed": 3}).double()


def tokens(length: int = 12) -> Tensor:
    return torch.randint(11, (2, length), generator=torch.Generator().manual_seed(0))


def test_scores_are_inhibited_by_the_mean_score_of_the_neighbours() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 2, 9, 4, dtype=torch.float64, generator=generator) for _ in range(2))
    inhibited, _ = KeyInhibition(0.3, 3, 0)(k, Context(torch.arange(9)[None]), None)
    plain, scores = q @ k.mT, q @ inhibited.mT
    for j in range(9):
        neighbours = plain[..., max(0, j - 3) : j]
        mean = neighbours.mean(-1) if j else torch.zeros_like(plain[..., 0])
        assert torch.allclose(scores[..., j], plain[..., j] - 0.3 * mean, atol=1e-13, rtol=0)


def test_barrier_grows_with_the_absolute_distance_per_head() -> None:
    barrier = DistanceBarrier(0.5)
    bias = barrier(Context(torch.arange(6)[None]), 4, 6, 6)
    assert bias.shape == (1, 4, 6, 6)
    for head in range(4):
        for t in range(6):
            for j in range(t + 1):
                assert bias[0, head, t, j].item() == pytest.approx(-0.5 * 2.0 ** (-8 * (head + 1) / 4) * (t - j))


def test_barrier_of_a_pair_does_not_depend_on_the_length_or_the_chunk() -> None:
    barrier = DistanceBarrier(0.5)
    ctx = Context(torch.arange(20)[None])
    whole = barrier(ctx, 2, 20, 20)
    assert torch.equal(barrier(ctx, 2, 12, 12), whole[:, :, :12, :12])
    assert torch.equal(barrier(ctx, 2, 3, 20), whole[:, :, -3:])


def test_nothing_is_plugged_at_zero_strength() -> None:
    plain, off = model_with({}), model_with({"septin": {"strength": 0.0, "barrier": 0.0}})
    assert not any(isinstance(module, KeyInhibition | DistanceBarrier) for module in off.modules())
    assert torch.equal(plain(tokens())[0], off(tokens())[0])


@pytest.mark.parametrize("mechanism", ["septin", "presyn+septin"])
def test_composes_with_cores_and_documents_over_any_split(mechanism: str) -> None:
    values = {"septin": {"strength": 0.4, "window": 3, "barrier": 0.7}}
    model = model_with({name: values.get(name, {}) for name in mechanism.split("+")}, window=7)
    starts = torch.zeros(2, 12, dtype=torch.bool)
    starts[0, 5] = starts[1, 2] = starts[1, 3] = True
    whole, _ = model(tokens(), starts=starts)
    state, parts = None, []
    for t in range(12):
        logits, state = model(tokens()[:, t : t + 1], state, starts=starts[:, t : t + 1])
        parts.append(logits)
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-11, rtol=0)
    alone, _ = model(tokens()[:1, 5:])
    assert torch.allclose(whole[:1, 5:], alone, atol=1e-11, rtol=0)


def test_its_state_has_a_fixed_shape_from_the_first_token_on() -> None:
    model = model_with({"septin": {"window": 3}})
    _, state = model(tokens(1))
    kept = state["layers"]["0"]["attention"]["keys_septin"]
    assert kept["keys"].shape == (2, 2, 3, 4)
    assert kept["valid"].tolist() == [[False, False, True]] * 2


def test_vitals_measure_the_inhibition() -> None:
    values = {}
    for strength in (0.1, 0.2):
        vitals = Vitals()
        model_with({"septin": {"strength": strength}}, num_layers=1)(tokens(), vitals=vitals)
        values[strength] = vitals.mean()
    assert values[0.2]["septin/inhibition"] == pytest.approx(2 * values[0.1]["septin/inhibition"].item(), rel=1e-5)
    assert values[0.2]["septin/key_gain"] < 1.2
    vitals = Vitals()
    model_with({"septin": {"strength": 0.0, "barrier": 0.5}})(tokens(), vitals=vitals)
    assert vitals.mean()["septin/inhibition"] == 0 and vitals.mean()["septin/key_gain"] == 1


def test_a_core_hears_that_inhibited_keys_are_longer():
    wide = {"vocab_size": 31, "num_layers": 1, "hidden_size": 512, "num_heads": 2}
    build({"model": wide, "mechanism": {"presyn": {}, "septin": {"strength": 0.5}}}, device="meta")
    with pytest.raises(ConfigError, match="head_dim = 256 lets attention logits reach 32"):
        build({"model": wide, "mechanism": {"presyn": {}, "septin": {"strength": 1.0}}}, device="meta")
