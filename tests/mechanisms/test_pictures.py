"""Pictures show the state that is there: aligned to its keys, per layer, also where a window lets keys go."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import bouton
from bouton.mechanisms.drawing import figure_of, png
from bouton.mechanisms.pictures import Picture, collect, find, over_time


def build(*words: str) -> Any:
    return bouton.build(bouton.compose("model=tiny", "model.vocab_size=32", "kernels=torch", *words)).eval()


TOKENS = torch.randint(32, (1, 12), generator=torch.Generator().manual_seed(0))


def test_presyn_shows_calcium_and_pool_of_every_key_after_every_query() -> None:
    model = build("mechanism=presyn")
    shown = collect(model, TOKENS)
    assert sorted(shown) == [f"presyn/{name}_layer{i}" for name in ("calcium", "pool") for i in (0, 1)]
    state = model(TOKENS[:, :8])[1]["layers"]["1"]["attention"]["core"]
    values = shown["presyn/pool_layer1"].values
    assert values.shape == (2, 12, 12)
    assert torch.allclose(values[:, 7, :8], state["pool"][0], atol=1e-5)
    assert values[:, 7, 8:].isnan().all()  # keys that come later


def test_a_window_shows_each_key_in_its_own_column() -> None:
    model = build("mechanism=presyn", "model.window=4")
    values = collect(model, TOKENS)["presyn/calcium_layer0"].values
    state = model(TOKENS)[1]["layers"]["0"]["attention"]["core"]
    assert values[:, 11].isfinite().nonzero()[:, 1].unique().tolist() == [9, 10, 11]  # the next query sees 3 old keys
    assert torch.allclose(values[:, 11, 9:], state["calcium"][0], atol=1e-5)


def test_hebb_shows_the_norms_of_its_fast_weights() -> None:
    model = build("mechanism=hebb")
    shown = collect(model, TOKENS)
    assert sorted(shown) == [f"hebb/{name}_norm_layer{i}" for name in ("fast", "slow") for i in (0, 1)]
    state = model(TOKENS)[1]["layers"]["0"]["attention"]["output"]["hebb"]
    assert torch.allclose(
        shown["hebb/fast_norm_layer0"].values[:, -1], state["fast"][0].norm(dim=(-2, -1)), rtol=1e-4, atol=1e-5
    )
    assert "hebb/slow_norm_layer0" not in collect(build("mechanism=hebb", "mechanism.hebb.eta_s=0"), TOKENS)


def test_a_document_boundary_is_seen() -> None:
    starts = torch.zeros_like(TOKENS, dtype=torch.bool)
    starts[0, 6] = True
    model = build("mechanism=hebb")
    whole = collect(model, TOKENS, starts)["hebb/fast_norm_layer0"].values
    alone = collect(model, TOKENS[:, 6:])["hebb/fast_norm_layer0"].values
    assert torch.allclose(whole[:, 6:], alone, atol=1e-5)


def test_without_pictures_nothing_is_computed() -> None:
    model = build("mechanism=sparse")
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    assert collect(model, TOKENS) == {}
    assert not calls


def test_two_places_in_one_layer_have_two_names() -> None:
    place = {"x": torch.zeros(1, 3)}
    states = [{"layers": {"0": {"attention": {"a": place}, "mixer": {"a": place}}, "1": {"mixer": {"a": place}}}}]
    assert [label for label, _ in find(states, "x")] == ["layer0_attention_a", "layer0_mixer_a", "layer1"]
    assert list(find([], "x")) == [] and list(find(states, "y")) == []
    assert list(find([{"layers": {}}, *states], "x")) == []  # not there from the first token on


def test_over_time_puts_the_newest_keys_at_the_diagonal() -> None:
    rows = [torch.tensor([[1.0]]), torch.tensor([[2.0, 3.0]]), torch.tensor([[4.0, 5.0]])]
    expected = torch.tensor([[1, torch.nan, torch.nan], [2, 3, torch.nan], [torch.nan, 4, 5]])
    assert torch.equal(over_time(rows)[0].nan_to_num(-1), expected.nan_to_num(-1))


@pytest.mark.parametrize("shape", [(3,), (0, 4), (1, 2, 3, 4)])
def test_a_picture_has_two_or_three_dimensions(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="a picture is"):
        Picture(torch.zeros(shape), "row", "column")


def test_a_drawing_has_a_panel_per_head_and_one_scale() -> None:
    values = torch.arange(24.0).view(2, 3, 4)
    figure = figure_of(Picture(values, "query", "key", unit="vesicles"), "title")
    first, second, bar = figure.axes
    assert (first.get_title(), second.get_title()) == ("head 0", "head 1")
    assert first.images[0].get_clim() == second.images[0].get_clim() == (0.0, 23.0)
    assert (first.get_ylabel(), first.get_xlabel(), bar.get_ylabel()) == ("query", "key", "vesicles")
    assert png(Picture(torch.full((2, 2), torch.nan), "a", "b")).startswith(b"\x89PNG")
    assert Picture(values[0], "a", "b")._repr_png_().startswith(b"\x89PNG")
