"""simplicial: the part against the op's reference, free of positions, its window, score terms, cost and vitals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from bouton.errors import BoutonError, ConfigError
from bouton.mechanisms import Vitals
from bouton.mechanisms.simplicial import SimplicialCore
from bouton.models.body import Body
from bouton.models.build import build
from bouton.models.context import Context
from bouton.ops.simplicial_attention import simplicial_attention_reference

MODEL = {"vocab_size": 11, "num_layers": 2, "hidden_size": 16, "num_heads": 4, "num_kv_heads": 2, "max_seq_len": 64}


def model_with(mechanism: dict[str, dict[str, Any]], **model: Any) -> Body:
    return build({"model": {**MODEL, **model}, "mechanism": mechanism, "seed": 3}).double()


def tokens(length: int = 12) -> Tensor:
    return torch.randint(11, (2, length), generator=torch.Generator().manual_seed(0))


def core_of(model: Body, layer: int = 0) -> SimplicialCore:
    return model.layers[layer].attention.core.part  # type: ignore[index, union-attr, return-value]


def heads(number: int, length: int, seed: int = 0) -> Tensor:
    return torch.randn(2, number, length, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotated(x: Tensor, ctx: Context) -> Tensor:
    from bouton.models.layers import rotate

    return rotate(x, *ctx.rotation(4, 10000.0, torch.float64))


def test_the_context_is_the_plain_one_plus_the_reference_of_position_free_queries_and_keys() -> None:
    core = core_of(model_with({"simplicial": {"w1": 4, "w2": 3, "strength": 0.7}}))
    ctx = Context(torch.arange(8)[None])
    q, k, v = heads(4, 8), heads(2, 8, 1), heads(2, 8, 2)
    args = (rotated(q, ctx), rotated(k, ctx), v, ctx)
    context, _ = core(*args, None, bias=None, window=None)
    assert core.plain is not None
    plain, _ = core.plain(*args, None, bias=None, window=None)

    def mapped(weight: Tensor, x: Tensor) -> Tensor:
        return torch.einsum("oi,bti->bto", weight, x.transpose(1, 2).reshape(2, 8, 8)).view(2, 8, 2, 4).transpose(1, 2)

    k2, v2 = mapped(core.key.weight, k), mapped(core.value.weight, v)
    k2 = k2 / k2.square().mean(-1, keepdim=True).sqrt()
    pairs, _ = simplicial_attention_reference(q, k, v, k2, v2, 4, 3)
    assert torch.allclose(context, plain + 0.7 * pairs, atol=1e-6, rtol=0)  # rms_norm adds an epsilon


def test_pairs_do_not_depend_on_the_position_in_the_sequence() -> None:
    core = core_of(model_with({"simplicial": {"w1": 4, "w2": 3, "combine": "replace"}}))
    q, k, v = heads(4, 6), heads(2, 6, 1), heads(2, 6, 2)
    results = []
    for offset in (0, 37):
        ctx = Context(torch.arange(6)[None] + offset)
        results.append(core(rotated(q, ctx), rotated(k, ctx), v, ctx, None, bias=None, window=None)[0])
    assert torch.allclose(results[0], results[1], atol=1e-12, rtol=0)


def test_score_terms_count_for_both_keys() -> None:
    core = core_of(model_with({"simplicial": {"w1": 3, "w2": 2, "combine": "replace"}}, position="none"))
    assert core.rope_base is None
    ctx = Context(torch.arange(7)[None])
    q, k, v = heads(4, 7), heads(2, 7, 1), heads(2, 7, 2)
    bias = torch.randn(1, 4, 7, 7, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    out, _ = core(q, k, v, ctx, None, bias=bias, window=None)
    places = {w: torch.zeros(1, 4, 7, w, dtype=torch.float64) for w in (3, 2)}
    for w, place in places.items():
        for t in range(7):
            for slot in range(w):
                if (key := t - (w - 1) + slot) >= 0:
                    place[0, :, t, slot] = bias[0, :, t, key]
    k2 = torch.nn.functional.rms_norm(core._mapped(core.key, k), (4,))
    v2 = core._mapped(core.value, v)
    expected, _ = simplicial_attention_reference(q, k, v, k2, v2, 3, 2, bias1=places[3], bias2=places[2])
    assert torch.allclose(out, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("position", ["rope", "none", "learned"])
@pytest.mark.parametrize(
    "mechanism", [{"simplicial": {"w1": 5, "w2": 9}}, {"simplicial": {"w1": 4}, "septin": {"barrier": 0.5}}]
)
def test_any_split_with_documents_and_a_window(position: str, mechanism: dict[str, dict[str, Any]]) -> None:
    model = model_with(mechanism, window=6, position=position)
    assert core_of(model).w2 <= 6
    starts = torch.zeros(2, 12, dtype=torch.bool)
    starts[0, 5] = starts[1, 2] = starts[1, 3] = True
    whole, _ = model(tokens(), starts=starts)
    state, parts = None, []
    for t in range(12):
        logits, state = model(tokens()[:, t : t + 1], state, starts=starts[:, t : t + 1])
        parts.append(logits)
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-11, rtol=0)
    assert torch.allclose(model(tokens()[:1, 5:])[0], whole[:1, 5:], atol=1e-11, rtol=0)


def test_a_window_of_the_body_bounds_both_windows() -> None:
    """Twice the window back there is nothing a query of the second block could see of the token."""
    model = model_with({"simplicial": {"w1": 10, "w2": 10}}, window=3)
    changed = tokens().clone()
    changed[:, 0] = (changed[:, 0] + 1) % 11
    before, after = model(tokens())[0], model(changed)[0]
    assert torch.equal(before[:, 5:], after[:, 5:])
    assert not torch.equal(before[:, 4], after[:, 4])


def test_every_second_block_has_it() -> None:
    model = model_with({"simplicial": {"every": 2}}, num_layers=4)
    assert [isinstance(layer.attention.core.part, SimplicialCore) for layer in model.layers] == [  # type: ignore[union-attr]
        False,
        True,
        False,
        True,
    ]


def test_in_place_of_the_core_there_is_no_core() -> None:
    core = core_of(model_with({"simplicial": {"combine": "replace"}}))
    assert core.plain is None
    assert not [m for m in core.modules() if type(m).__name__ == "DotProductCore"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"every": 3}, "every = 3 leaves none of the 2 blocks"),
        ({"combine": "replace", "strength": 0.0}, "strength = 0 with combine = replace"),
        ({"w1": 0}, "w1 = 0"),
    ],
)
def test_refusals_are_one_clear_line(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        model_with({"simplicial": values})
    assert "\n" not in str(caught.value)


def test_another_core_is_refused_by_name() -> None:
    with pytest.raises(BoutonError, match="'presyn' and 'simplicial'"):
        model_with({"simplicial": {}, "presyn": {}})


def test_cost_is_what_the_products_take() -> None:
    """Counted by hand for a sequence of three tokens and windows 2 and 1: 1, 2, 2 pairs and 1 second key each."""
    model = model_with({"simplicial": {"w1": 2, "w2": 1}})
    own = core_of(model).flops_per_token(3)
    assert own == pytest.approx(4 * 4 * (4 * 5 / 3 + 3))
    plain = model_with({})
    extra = model.flops_per_token(3) - plain.flops_per_token(3)
    assert extra == pytest.approx(2 * (own + 2 * 2 * 8 * 8))  # two blocks; two maps of width 8


def test_vitals_of_a_window_of_one_pair() -> None:
    vitals = Vitals()
    model_with({"simplicial": {"w1": 1, "w2": 1, "combine": "replace"}})(tokens(), vitals=vitals)
    values = vitals.mean()
    assert values["simplicial/pairs"].item() == pytest.approx(1.0)
    assert values["simplicial/interaction"].item() == pytest.approx(0.0, abs=1e-6)
    assert values["simplicial/contribution"].item() == pytest.approx(1.0)


def test_vitals_see_that_both_keys_interact() -> None:
    """A window of one factorises; keys that matter together do not."""
    found = {}
    for w2 in (1, 6):
        vitals = Vitals()
        model_with({"simplicial": {"w1": 6, "w2": w2}})(tokens(), vitals=vitals)
        found[w2] = vitals.mean()["simplicial/interaction"].item()
    assert found[1] == pytest.approx(0.0, abs=1e-6) and 0.01 < found[6] < math.log(6)


def test_strength_is_learned_per_head_and_zero_is_plain() -> None:
    assert core_of(model_with({"simplicial": {"strength": 0.3}})).strength.tolist() == pytest.approx([0.3] * 4)  # type: ignore[union-attr]
    assert core_of(model_with({"simplicial": {"learnable": False}})).strength is None
    off, plain = model_with({"simplicial": {"strength": 0.0}}), model_with({})
    assert torch.equal(off(tokens())[0], plain(tokens())[0])
