"""presyn plugged into a small body."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import bouton
from bouton.errors import ConfigError
from bouton.mechanisms import Vitals
from bouton.mechanisms.presyn import CONSTRAINTS, FatigueCore, Presyn, PresynParams
from bouton.models.attention import DotProductCore
from bouton.models.body import Body
from bouton.ops.fatigue_attention import Kinetics

MODEL = {"vocab_size": 31, "num_layers": 2, "hidden_size": 32, "num_heads": 4, "num_kv_heads": 2}


def make_body(presyn: dict[str, Any] | None, **model: Any) -> Body:
    mechanism = {} if presyn is None else {"presyn": presyn}
    return bouton.build({"model": {**MODEL, **model}, "mechanism": mechanism, "seed": 3}).double()


def cores(body: Body) -> list[FatigueCore]:
    found = [socket.part for socket in body.sockets("attention_core")]
    assert all(isinstance(core, FatigueCore) for core in found)
    return found


def make_tokens(length: int = 23) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    tokens = torch.randint(31, (2, length), generator=g)
    return tokens, torch.rand(2, length, generator=g) < 0.1


VARIANTS: dict[str, dict[str, Any]] = {
    "min": {},
    "mul": {"rule": "mul"},
    "age": {"release": "age"},
    "learned": {"learnable": True},
    "learned age": {"learnable": True, "release": "age", "b": -0.5},
}


@pytest.mark.parametrize("model", [{}, {"window": 6}, {"window": 6, "full_attention_every": 2}], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_any_split_gives_the_same_logits_and_documents_are_isolated(variant: str, model: dict[str, Any]) -> None:
    body = make_body(VARIANTS[variant], **model)
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
    alone, _ = body(tokens[row : row + 1, first:])
    torch.testing.assert_close(alone[0], whole[row, first:], rtol=1e-11, atol=1e-11)


def test_it_changes_the_logits() -> None:
    tokens, _ = make_tokens()
    plain = make_body(None)(tokens)[0]
    logits = [make_body(options)(tokens)[0] for options in ({}, {"rule": "mul"}, {"release": "age"})]
    for i, a in enumerate([plain, *logits]):
        for b in logits[i:]:
            assert (a - b).abs().max() > 1e-4


def test_strength_zero_is_the_plain_body_bit_for_bit() -> None:
    tokens, starts = make_tokens()
    body = make_body({"strength": 0.0})
    assert all(isinstance(socket.part, DotProductCore) for socket in body.sockets("attention_core"))
    assert all(socket.owner == "presyn" for socket in body.sockets("attention_core"))
    assert torch.equal(body(tokens, starts=starts)[0], make_body(None)(tokens, starts=starts)[0])


def test_learned_strength_zero_uses_the_kernel_and_can_grow() -> None:
    tokens, _ = make_tokens()
    body = make_body({"strength": 0.0, "learnable": True})
    logits, _ = body(tokens)
    torch.testing.assert_close(logits, make_body(None)(tokens)[0])
    logits.square().sum().backward()
    assert all(core.get_parameter("lam").grad.abs().max() > 0 for core in cores(body))


def test_fixed_kinetics_are_those_of_the_parameters() -> None:
    core = cores(make_body({"tau_c": 4.0, "tau_rrp": 20.0}))[0]
    kinetics = core.kinetics(torch.device("cpu"), torch.float64)
    assert list(core.parameters()) == []
    assert kinetics.rho_c.tolist() == [math.exp(-1 / 4)] * 4
    assert kinetics.rho_r.tolist() == [math.exp(-1 / 20)] * 4
    assert kinetics.b.tolist() == [-0.8] * 4


def test_learned_kinetics_start_at_the_parameters_and_stay_in_range() -> None:
    body = make_body({"learnable": True, "tau_c": 4.0, "s": 2.5, "strength": 0.7})
    core = cores(body)[0]
    expected = core.hp.kinetics()
    assert expected["b"] == -3.0
    kinetics = core.kinetics(torch.device("cpu"), torch.float64)
    for name, value in kinetics._asdict().items():
        assert value.tolist() == pytest.approx([expected[name]] * 4, rel=1e-5)
    assert set(core.learned) == set(Kinetics._fields)
    assert all(parameter.dim() == 1 for parameter in core.parameters())
    tokens, _ = make_tokens()
    body(tokens)[0].square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in core.parameters())
    for free in (-20.0, 20.0):
        with torch.no_grad():
            for parameter in core.parameters():
                parameter.fill_(free)
        far = core.kinetics(torch.device("cpu"), torch.float64)
        assert 0 < far.rho_c[0] < 1
        assert 0 < far.rho_r[0] < 1
        assert 0 < far.s[0] < 4
        assert all(getattr(far, name)[0] > 0 for name in ("alpha_ca", "k_d", "kappa", "r_max", "eps"))


def test_age_learns_no_calcium() -> None:
    body = make_body(VARIANTS["learned age"])
    assert set(cores(body)[0].learned) == {"b", "kappa", "rho_r", "r_max", "lam", "eps"}
    tokens, _ = make_tokens()
    body(tokens)[0].square().sum().backward()
    assert all(parameter.grad is not None for parameter in cores(body)[0].parameters())


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_constraints_invert(name: str) -> None:
    constrain, free = CONSTRAINTS[name]
    for value in (1e-4, 0.3, 0.999):
        assert constrain(torch.tensor(free(value), dtype=torch.float64)).item() == pytest.approx(value, rel=1e-9)


def test_state_is_what_is_declared() -> None:
    tokens, _ = make_tokens(9)
    _, state = make_body({}).float()(tokens)
    core = state["layers"]["0"]["attention"]["core"]
    assert {name: (x.shape, x.dtype) for name, x in core.items()} == {
        "calcium": ((2, 4, 9), torch.float32),
        "pool": ((2, 4, 9), torch.float32),
    }
    _, state = make_body({}, window=4)(tokens)
    assert state["layers"]["0"]["attention"]["core"]["pool"].shape == (2, 4, 3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_vitals_are_declared_and_sane(variant: str) -> None:
    body = make_body(VARIANTS[variant])
    tokens, starts = make_tokens()
    vitals = Vitals()
    with_vitals, _ = body(tokens, starts=starts, vitals=vitals)
    values = {name: value.item() for name, value in vitals.mean().items()}
    assert values.keys() == {f"presyn/{name}" for name in Presyn.vital_names}
    assert 0 <= values["presyn/depleted"] <= 1
    assert 0 < values["presyn/pool"] <= 1
    assert 0 <= values["presyn/shift"] <= 1
    assert (values["presyn/calcium"] > 0) == (PresynParams(**VARIANTS[variant]).release == "kinetic")
    assert torch.equal(with_vitals, body(tokens, starts=starts)[0])


def test_pool_and_calcium_vitals_are_means_over_the_visible_keys() -> None:
    body = make_body({}, num_layers=1)
    tokens, _ = make_tokens(8)
    vitals = Vitals()
    _, state = body(tokens, vitals=vitals)
    core = state["layers"]["0"]["attention"]["core"]
    assert vitals.mean()["presyn/pool"].item() == pytest.approx(core["pool"].mean().item(), rel=1e-5)
    assert vitals.mean()["presyn/calcium"].item() == pytest.approx(core["calcium"].mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tau_c": -1.0}, "tau_c = -1.0 is not valid"),
        ({"rule": "max"}, "rule = 'max' is not valid"),
        ({"s": 5.0}, "s = 5.0 is not valid"),
        ({"eps": 0.0}, "eps = 0.0 is not valid"),
        ({"release": "age", "tau_c": 3.0}, "tau_c = 3 has no effect with release = age"),
        ({"release": "age", "alpha_ca": 0.1}, "alpha_ca = 0.1 has no effect with release = age"),
        ({"release": "age", "k_d": 0.1}, "k_d = 0.1 has no effect with release = age"),
        ({"release": "age", "s": 0.1}, "s = 0.1 has no effect with release = age"),
        ({"learnable": True, "s": 4.0}, "s = 4 cannot be learned from"),
    ],
)
def test_bad_parameters_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        PresynParams(**values)
    assert message in str(caught.value)


def test_unbounded_logits_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.qk_norm = false"):
        make_body({}, qk_norm=False)
    with pytest.raises(ConfigError, match=r"model\.head_dim = 1024"):
        bouton.build({"model": {**MODEL, "head_dim": 1024}, "mechanism": {"presyn": {}}}, device="meta")
