"""doc2, metabolism and endocytosis plugged into a small body, alone and all together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import bouton
from bouton.errors import ConfigError, SocketError
from bouton.mechanisms import Vitals, registry
from bouton.mechanisms.pictures import collect
from bouton.models.body import Body
from bouton.models.sockets import KINDS

MODEL = {"vocab_size": 31, "num_layers": 2, "hidden_size": 32, "num_heads": 4, "num_kv_heads": 2}
NAMES = ("doc2", "endocytosis", "metabolism", "stochastic")


def make_body(*names: str, presyn: dict[str, Any] | None = None, model: dict[str, Any] | None = None) -> Body:
    mechanism = {"presyn": presyn or {}} | {name: dict[str, Any]() for name in names}
    return bouton.build({"model": {**MODEL, **(model or {})}, "mechanism": mechanism, "seed": 3}).double()


def make_tokens(length: int = 23) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randint(31, (2, length), generator=g), torch.rand(2, length, generator=g) < 0.1


def refined(name: str, **values: Any) -> Body:
    return bouton.build({"model": MODEL, "mechanism": {"presyn": {}, name: values}, "seed": 3}).double()


@pytest.mark.parametrize("rule", ["min", "mul"])
@pytest.mark.parametrize("model", [{}, {"window": 6}, {"window": 1}, {"window": 6, "full_attention_every": 2}], ids=str)
def test_all_together_any_split_is_equal_and_documents_are_isolated(model: dict[str, Any], rule: str) -> None:
    body = make_body(*NAMES, presyn={"rule": rule}, model=model)
    tokens, starts = make_tokens()
    whole, _ = body(tokens, starts=starts)
    parts, state, end = [], None, 0
    for size in (5, 1, 9, 1, 1, 6):
        start, end = end, end + size
        logits, state = body(tokens[:, start:end], state, starts=starts[:, start:end])
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-11, atol=1e-11)
    row = int(starts.any(1).nonzero()[0])
    first = int(starts[row].nonzero()[-1])
    alone, _ = body(tokens[row : row + 1, first:], samples=torch.tensor([row]))
    torch.testing.assert_close(alone[0], whole[row, first:], rtol=1e-11, atol=1e-11)


def test_each_changes_the_logits_in_its_own_way() -> None:
    tokens, _ = make_tokens()
    logits = [make_body()(tokens)[0], *(make_body(name)(tokens)[0] for name in NAMES), make_body(*NAMES)(tokens)[0]]
    for i, a in enumerate(logits):
        for b in logits[i + 1 :]:
            assert (a - b).abs().max() > 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_neutral_is_presyn_bit_for_bit_on_its_own_kernels(name: str) -> None:
    tokens, starts = make_tokens()
    body = refined(name, **(registry.get(name).neutral or {}))
    assert torch.equal(body(tokens, starts=starts)[0], make_body()(tokens, starts=starts)[0])
    assert all(len(socket) == 0 for socket in body.sockets("synapse"))


@pytest.mark.parametrize("name", NAMES)
def test_it_needs_presyn_and_copes_with_one_of_no_strength(name: str) -> None:
    with pytest.raises(SocketError, match=rf"'{name}' refines 'presyn', which is not there: use "):
        bouton.build({"model": MODEL, "mechanism": {name: {}}})
    tokens, _ = make_tokens()
    off = make_body(name, presyn={"strength": 0.0})
    plain = bouton.build({"model": MODEL, "mechanism": {}, "seed": 3}).double()
    assert torch.equal(off(tokens)[0], plain(tokens)[0])


@pytest.mark.parametrize("rule", ["min", "mul"])
def test_vitals_of_presyn_are_those_of_the_refined_synapse(rule: str) -> None:
    """A refinement that does next to nothing leaves them as they were; one that drains the pool shows in them."""
    tokens, starts = make_tokens()

    def vitals(**mechanisms: Any) -> dict[str, float]:
        found = Vitals()
        config = {"model": MODEL, "mechanism": {"presyn": {"rule": rule}, **mechanisms}, "seed": 3}
        bouton.build(config).double()(tokens, starts=starts, vitals=found)
        return {name: value.item() for name, value in found.mean().items()}

    plain = vitals()
    faint = vitals(doc2={"g": 1e-9})
    assert {name: faint[name] for name in plain} == pytest.approx(plain, rel=1e-5)
    drained = vitals(doc2={"g": 0.5, "alpha_2": 0.5})
    assert drained["presyn/pool"] < 0.9 * plain["presyn/pool"]
    assert drained["presyn/depleted"] > plain["presyn/depleted"]
    assert drained["doc2/asynchronous"] > 0.3 > faint["doc2/asynchronous"]
    assert drained["doc2/slow_calcium"] > 0
    assert vitals(metabolism={"strength": 1e-9})["presyn/shift"] == pytest.approx(plain["presyn/shift"], rel=1e-5)


def test_vitals_of_the_refinements() -> None:
    tokens, _ = make_tokens(40)

    def vitals(name: str, **values: Any) -> dict[str, float]:
        found = Vitals()
        refined(name, **values)(tokens, vitals=found)
        return {key.removeprefix(f"{name}/"): value.item() for key, value in found.mean().items()}

    thrifty, lavish = vitals("metabolism", cost=1e-6), vitals("metabolism", cost=1.0)
    assert thrifty["energy"] == pytest.approx(1, abs=1e-4)
    assert thrifty["exhausted"] == 0
    assert lavish["exhausted"] > 0.5
    assert lavish["amplitude"] < 0.5 < thrifty["amplitude"]
    slow, fast = vitals("endocytosis", delay=30, prime=0.01), vitals("endocytosis", delay=1, prime=1.0)
    assert slow["under_way"] > fast["under_way"]
    assert vitals("endocytosis", delay=1, prime=0.01)["reserve"] > fast["reserve"]
    assert all(0 <= x[name] <= 1 for x in (slow, fast) for name in ("reserve", "under_way", "presyn/pool"))


def test_endocytosis_takes_the_place_of_the_recovery() -> None:
    with pytest.raises(ConfigError, match=r"'endocytosis': mechanism\.presyn\.tau_rrp = 20 has no effect"):
        make_body("endocytosis", presyn={"tau_rrp": 20.0})
    body = make_body("endocytosis", presyn={"learnable": True})
    assert not [name for name, _ in body.named_parameters() if name.endswith("rho_r")]
    tokens, _ = make_tokens()
    body(tokens)[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in body.parameters())
    assert [name for name, _ in make_body("doc2", presyn={"learnable": True}).named_parameters() if "rho_r" in name]


def test_all_constants_of_presyn_learn_under_every_refinement() -> None:
    body = make_body(*NAMES, presyn={"learnable": True, "b": -0.5})
    tokens, _ = make_tokens(40)
    body(tokens)[0].square().sum().backward()
    for name, p in body.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name
        assert p.grad.any(), name


def test_vesicles_are_conserved_in_the_body() -> None:
    tokens, _ = make_tokens(60)
    _, state = make_body("endocytosis", "doc2")(tokens)
    for layer in state["layers"].values():
        core = layer["attention"]["core"]
        total = core["pool"] + core["reserve"] + core["ring"].sum(-1)
        torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-12, atol=1e-12)


def test_age_has_no_calcium_for_doc2_and_composes_with_the_others() -> None:
    with pytest.raises(ConfigError, match=r"'doc2': mechanism\.presyn\.release = age .* no calcium"):
        make_body("doc2", presyn={"release": "age"})
    tokens, starts = make_tokens()
    body = make_body("endocytosis", "metabolism", "stochastic", presyn={"release": "age"})
    whole, _ = body(tokens, starts=starts)
    first, state = body(tokens[:, :11], starts=starts[:, :11])
    rest, _ = body(tokens[:, 11:], state, starts=starts[:, 11:])
    torch.testing.assert_close(torch.cat((first, rest), 1), whole, rtol=1e-11, atol=1e-11)


def test_the_socket_comes_right_after_the_core() -> None:
    order = list(KINDS)
    assert order.index("synapse") == order.index("attention_core") + 1


def test_pictures_show_what_is_held() -> None:
    tokens, _ = make_tokens(9)
    shown = collect(make_body(*NAMES).eval(), tokens[:1])
    names = {name.rsplit("_", 1)[0] for name in shown}
    assert {
        "presyn/calcium",
        "presyn/pool",
        "doc2/slow_calcium",
        "endocytosis/reserve",
        "endocytosis/under_way",
        "metabolism/energy",
    } <= names
    energy = shown["metabolism/energy_layer0"].values
    assert energy.shape == (4, 9, 9)
    assert 0 <= energy[~energy.isnan()].min()  # noqa: SIM300
    assert energy[~energy.isnan()].max() <= 1
