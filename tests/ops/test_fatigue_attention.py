"""Presynaptic-fatigue attention: every execution equals the sequential definition, in values and gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from bouton.ops.fatigue_attention import Kinetics, fatigue_attention, reference
from bouton.ops.fatigue_attention import torch as torch_backend

BASE = Kinetics(*(torch.tensor(x) for x in (0.846, 0.55, 0.7, 3.0, -0.8, 1.0, 0.975, 1.0, 1.0, 1e-3)))


def make_kinetics(heads: int, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> Kinetics:
    """Different in every head; the pool recovers fast enough that not every synapse is depleted."""
    jitter = [1 + 0.1 * torch.rand(heads, generator=generator, dtype=dtype) for _ in BASE]
    kin = Kinetics(*(x.to(dtype) * j for x, j in zip(BASE, jitter, strict=True)))
    return kin._replace(rho_c=0.8 * jitter[0], rho_r=0.7 * jitter[6], b=-2 * jitter[4], lam=0.8 * jitter[8])


def make_case(
    *,
    batch: int = 2,
    heads: int = 4,
    kv_heads: int = 4,
    tq: int = 13,
    old: int = 0,
    dim: int = 6,
    segments: bool = False,
    bias: tuple[int, ...] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    tk = tq + old
    case: dict[str, Any] = {
        "q": 1.5 * normal(batch, heads, tq, dim),
        "k": normal(batch, kv_heads, tk, dim),
        "v": normal(batch, kv_heads, tk, dim),
        "kinetics": make_kinetics(heads, g),
        "state": None,
        "bias": None if bias is None else normal(*bias),
    }
    if old:
        case["state"] = {
            "calcium": torch.rand(batch, heads, old, generator=g, dtype=torch.float64),
            "pool": 0.5 + 0.5 * torch.rand(batch, heads, old, generator=g, dtype=torch.float64),
        }
    if segments:
        starts = torch.rand(batch, tk, generator=g) < 0.15
        ids = starts.cumsum(1)
        case |= {"segments_q": ids[:, old:], "segments_k": ids}
    return case


def leaves(case: dict[str, Any]) -> dict[str, Tensor]:
    named = {name: case[name] for name in ("q", "k", "v", "bias") if case[name] is not None}
    named |= dict(case["kinetics"]._asdict())
    return named | (case["state"] or {})


def run_with_gradients(case: dict[str, Any], forward: Any, **options: Any) -> dict[str, Tensor]:
    """Output, final state, and the gradient of a fixed random function of all three in every input."""
    fresh = {name: x.detach().clone().requires_grad_() for name, x in leaves(case).items()}
    state = {name: fresh[name] for name in case["state"]} if case["state"] else None
    call = {**case, **options, **{name: fresh.get(name) for name in ("q", "k", "v", "bias")}}
    call |= {"kinetics": Kinetics(*(fresh[name] for name in Kinetics._fields)), "state": state}
    out, after = forward(**call)
    results = {"out": out, **after}
    g = torch.Generator().manual_seed(99)
    loss = sum((x * torch.randn(x.shape, generator=g, dtype=x.dtype)).sum() for x in results.values())
    assert isinstance(loss, Tensor)
    grads = torch.autograd.grad(loss, list(fresh.values()), allow_unused=True)
    results |= {
        f"grad {n}": torch.zeros_like(x) if d is None else d for (n, x), d in zip(fresh.items(), grads, strict=True)
    }
    return {name: x.detach() for name, x in results.items()}


def by_definition(**call: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The public function with the reference as its backend."""
    original = torch_backend.forward
    torch_backend.forward = reference.forward
    try:
        return fatigue_attention(**call, backend="torch")
    finally:
        torch_backend.forward = original


def by_torch(**call: Any) -> tuple[Tensor, dict[str, Tensor]]:
    return fatigue_attention(**call, backend="torch")


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    assert actual.keys() == expected.keys()
    for name, x in expected.items():
        scale = x.abs().max().clamp_min(1e-3)
        error = ((actual[name] - x).abs().max() / scale).item()
        assert error < tolerance, f"{name}: relative error {error:.1e}"


SHAPES = {
    "plain": {},
    "one key head per group": {"kv_heads": 2},
    "old keys": {"old": 5, "kv_heads": 1},
    "segments": {"segments": True, "old": 4},
    "several blocks": {"batch": 1, "heads": 2, "kv_heads": 1, "tq": 21, "old": 3, "dim": 5},
    "full bias": {"bias": (2, 4, 13, 15), "old": 2},
    "broadcast bias": {"bias": (4, 1, 13)},
    "bias per query": {"bias": (1, 1, 13, 1)},
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_backend, "QUERIES_PER_BLOCK", 8)


@pytest.mark.parametrize("window", [None, 2, 6])
@pytest.mark.parametrize(("rule", "release"), [("min", "kinetic"), ("mul", "kinetic"), ("min", "age"), ("mul", "age")])
@pytest.mark.parametrize("shape", SHAPES)
def test_torch_equals_the_definition(shape: str, rule: str, release: str, window: int | None) -> None:
    case = make_case(**SHAPES[shape])
    options = {"rule": rule, "release": release, "window": window}
    expected = run_with_gradients(case, by_definition, **options)
    assert_same(run_with_gradients(case, by_torch, **options), expected)
    for name in ("q", "v", "kappa", "rho_r", "r_max", "b", "eps", "lam"):
        assert expected[f"grad {name}"].abs().max() > 0


@pytest.mark.parametrize("rule", ["min", "mul"])
def test_strength_one_takes_no_power_and_is_the_same(rule: str) -> None:
    case = make_case(tq=19, old=2, kv_heads=2)
    case["kinetics"] = case["kinetics"]._replace(lam=torch.ones(4, dtype=torch.float64))
    expected = run_with_gradients(case, by_definition, rule=rule)
    assert_same(run_with_gradients(case, by_torch, rule=rule), expected)


def test_two_tokens_by_hand() -> None:
    """One head of width 1, all logits ln 2 or 0; every number below follows from the equations on paper."""
    kin = Kinetics(
        *(torch.tensor([x], dtype=torch.float64) for x in (0.5, 2.0, 1.0, 2.0, -1.0, 1.0, 0.75, 1.0, 1.0, 0.1))
    )
    ln2 = math.log(2.0)
    q = torch.tensor([ln2, 0.0], dtype=torch.float64).view(1, 1, 2, 1)
    k = torch.ones(1, 1, 2, 1, dtype=torch.float64)
    v = torch.tensor([3.0, 5.0], dtype=torch.float64).view(1, 1, 2, 1)

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    # query 0 on key 0: E = 2
    c0 = 2 * math.log(3.0)
    p0 = sigmoid(2 * c0 / (c0 + 1) - 1) * 2 / 3
    # query 1: E = 1 on both keys
    c0_next, c1 = 0.5 * c0 + 2 * ln2, 2 * ln2
    p01 = sigmoid(2 * c0_next / (c0_next + 1) - 1) / 2
    p11 = sigmoid(2 * c1 / (c1 + 1) - 1) / 2
    for rule in ("min", "mul"):
        r0 = 0.75 * (1 - p0) + 0.25
        w01, w11 = (min(p01, r0), min(p11, 1.0)) if rule == "min" else (p01 * r0, p11)
        n0, n1 = 0.1 + w01, 0.1 + w11
        r0_next = 0.75 * (max(r0 - p01, 0.0) if rule == "min" else (1 - p01) * r0) + 0.25
        r1 = 0.75 * (1 - p11) + 0.25
        for forward in (by_definition, by_torch):
            out, state = forward(q=q, k=k, v=v, kinetics=kin, rule=rule)
            assert out.flatten().tolist() == pytest.approx([3.0, (3 * n0 + 5 * n1) / (n0 + n1)], abs=1e-14)
            assert state["calcium"].flatten().tolist() == pytest.approx([c0_next, c1], abs=1e-14)
            assert state["pool"].flatten().tolist() == pytest.approx([r0_next, r1], abs=1e-14)


def test_age_release_by_hand() -> None:
    """With release by age the pool of a key is a function of its age: b = 0, kappa = 1 release a quarter each time."""
    kin = Kinetics(
        *(torch.tensor([x], dtype=torch.float64) for x in (0.5, 2.0, 1.0, 2.0, 0.0, 1.0, 0.5, 1.0, 1.0, 0.1))
    )
    g = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(1, 1, 3, 4, generator=g, dtype=torch.float64) for _ in range(3))
    for forward in (by_definition, by_torch):
        _, state = forward(q=q, k=k, v=v, kinetics=kin, rule="mul", release="age")
        pools = [1.0]
        for _ in range(3):
            pools.append(0.5 * 0.75 * pools[-1] + 0.5)
        assert state["pool"].flatten().tolist() == pytest.approx(pools[:0:-1], abs=1e-14)
        assert state["calcium"].abs().max() == 0


@pytest.mark.parametrize(("rule", "release"), [("min", "kinetic"), ("mul", "age")])
def test_reference_passes_gradcheck(rule: str, release: str) -> None:
    case = make_case(batch=1, heads=2, kv_heads=1, tq=4, old=2, dim=3, bias=(1, 2, 4, 6))
    named = {name: x.detach().clone().requires_grad_() for name, x in leaves(case).items()}

    def function(*values: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(named, values, strict=True))
        kin = Kinetics(*(given[name] for name in Kinetics._fields))
        state = {name: given[name] for name in ("calcium", "pool")}
        out, after = by_definition(
            q=given["q"],
            k=given["k"],
            v=given["v"],
            kinetics=kin,
            state=state,
            bias=given["bias"],
            rule=rule,
            release=release,
        )
        return out, after["calcium"], after["pool"]

    assert torch.autograd.gradcheck(function, tuple(named.values()))


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("segments", [False, True])
@pytest.mark.parametrize("sizes", [(1,) * 17, (9, 8), (1, 3, 12, 1)])
def test_any_split_into_chunks_is_the_whole(sizes: tuple[int, ...], segments: bool, window: int | None) -> None:
    case = make_case(tq=17, kv_heads=2, segments=segments)
    whole, final = by_torch(**case, window=window)
    outs, state, end = [], None, 0
    for size in sizes:
        start, end = end, end + size
        low = 0 if window is None else max(0, start - window + 1)  # a cache that forgets what no query sees
        ids = (
            {"segments_q": case["segments_q"][:, start:end], "segments_k": case["segments_k"][:, low:end]}
            if segments
            else {}
        )
        out, state = by_torch(
            q=case["q"][:, :, start:end],
            k=case["k"][:, :, low:end],
            v=case["v"][:, :, low:end],
            kinetics=case["kinetics"],
            state=state,
            window=window,
            **ids,
        )
        outs.append(out)
    torch.testing.assert_close(torch.cat(outs, dim=2), whole, rtol=1e-12, atol=1e-12)
    assert state is not None
    for name, x in state.items():
        torch.testing.assert_close(x, final[name][..., -x.shape[-1] :], rtol=1e-12, atol=1e-12)


def test_an_unseen_key_rests() -> None:
    """Beyond the window calcium decays and the pool recovers; a key never seen stays fresh."""
    case = make_case(tq=20, heads=1, kv_heads=1)
    _, state = by_torch(**case, window=3)
    _, early = by_torch(
        **{**case, "q": case["q"][:, :, :3], "k": case["k"][:, :, :3], "v": case["v"][:, :, :3]}, window=3
    )
    kin = case["kinetics"]
    decay, recovery = kin.rho_c**17, kin.rho_r**17
    torch.testing.assert_close(state["calcium"][..., 0], early["calcium"][..., 0] * decay)
    torch.testing.assert_close(state["pool"][..., 0], kin.r_max + (early["pool"][..., 0] - kin.r_max) * recovery)
    ids = torch.zeros(2, 20, dtype=torch.int64)
    ids[:, 0] = 1
    alone = {**case, "segments_q": torch.zeros(2, 20, dtype=torch.int64), "segments_k": ids}
    _, state = by_torch(**alone)
    assert state["calcium"][..., 0].abs().max() == 0
    torch.testing.assert_close(state["pool"][..., 0], kin.r_max.expand(2, 1))


def test_a_query_that_sees_nothing_reads_zero() -> None:
    case = make_case(tq=9)
    case |= {"segments_q": torch.ones(2, 9, dtype=torch.int64), "segments_k": torch.zeros(2, 9, dtype=torch.int64)}
    for forward in (by_definition, by_torch):
        results = run_with_gradients(case, forward)
        assert results["out"].abs().max() == 0
        assert all(x.isfinite().all() for x in results.values())


def test_no_query_sees_the_future() -> None:
    case = make_case(tq=20)
    before, _ = by_torch(**case)
    for name in ("q", "k", "v"):
        case[name] = case[name].clone()
        case[name][:, :, 11:] += 1.0
    after, _ = by_torch(**case)
    assert torch.equal(before[:, :, :11], after[:, :, :11])
    assert not torch.equal(before[:, :, 11:], after[:, :, 11:])


@pytest.mark.parametrize("rule", ["min", "mul"])
def test_strength_zero_is_plain_attention(rule: str) -> None:
    case = make_case(tq=17, kv_heads=2)
    case["kinetics"] = case["kinetics"]._replace(lam=torch.zeros(4, dtype=torch.float64))
    out, _ = by_torch(**case, rule=rule)
    plain = torch.nn.functional.scaled_dot_product_attention(
        case["q"], case["k"], case["v"], is_causal=True, enable_gqa=True
    )
    torch.testing.assert_close(out, plain)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("tq", [1, 33])
def test_lower_precision(dtype: torch.dtype, tolerance: float, tq: int) -> None:
    case = make_case(tq=tq, old=5, kv_heads=2)
    low = {name: case[name].to(dtype) for name in ("q", "k", "v")}
    state = {name: x.float() for name, x in case["state"].items()}
    out, after = by_torch(**low, kinetics=Kinetics(*(x.float() for x in case["kinetics"])), state=state)
    exact, final = by_torch(**{**case, **{name: x.double() for name, x in low.items()}})
    assert out.dtype == dtype
    assert after["calcium"].dtype == after["pool"].dtype == torch.float32
    torch.testing.assert_close(out.double(), exact, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(after["pool"].double(), final["pool"], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("tq", [1, 17])
def test_autocast_does_not_touch_the_arithmetic(tq: int) -> None:
    case = make_case(tq=tq, old=3)
    case["state"] = None
    low = {name: case[name].float() for name in ("q", "k", "v")}
    kin = Kinetics(*(x.float() for x in case["kinetics"]))
    plain, _ = by_torch(**low, kinetics=kin)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast, _ = by_torch(**low, kinetics=kin)
    assert torch.equal(plain, cast)


def test_operator_is_registered_correctly() -> None:
    """Schema, fake tensors and autograd registration, as torch.compile needs them."""
    case = make_case(batch=1, heads=2, kv_heads=1, tq=10, dim=4)
    kin = torch.stack(tuple(case["kinetics"])).requires_grad_()
    q = case["q"].clone().requires_grad_()
    state = [torch.zeros(1, 2, 10, dtype=torch.float64), torch.ones(1, 2, 10, dtype=torch.float64)]
    arguments = (q, case["k"], case["v"], kin, *state, None, None, None, 0, "min", "kinetic", True)
    torch.library.opcheck(torch.ops.bouton.fatigue_attention.default, arguments)


def error_of(**changes: Any) -> str:
    with pytest.raises(ValueError) as caught:
        fatigue_attention(**{**make_case(tq=5, old=2, heads=4, kv_heads=2), **changes})
    return str(caught.value)


def test_errors_name_what_does_not_fit() -> None:
    case = make_case(tq=5, old=2, heads=4, kv_heads=2)
    assert "rule = 'max' is unknown; known: min, mul" in error_of(rule="max")
    assert "release = 'x' is unknown; known: kinetic, age" in error_of(release="x")
    assert "window = 0" in error_of(window=0)
    assert "4 query heads cannot share 3 key heads" in error_of(k=torch.zeros(2, 3, 7, 6), v=torch.zeros(2, 3, 7, 6))
    assert "7 queries" in error_of(q=case["k"].repeat(1, 2, 1, 1), k=case["k"][:, :, :5], v=case["v"][:, :, :5])
    assert "kinetics.b" in error_of(kinetics=case["kinetics"]._replace(b=torch.zeros(3)))
    assert "segments_q and segments_k" in error_of(segments_q=torch.zeros(2, 5))
    assert "segments_k has shape (2, 5)" in error_of(segments_q=torch.zeros(2, 5), segments_k=torch.zeros(2, 5))
    assert "2 old keys need (2, 4, >= 2)" in error_of(state={name: x[..., :1] for name, x in case["state"].items()})
    assert "bias (3, 7) cannot be broadcast" in error_of(bias=torch.zeros(3, 7))
    assert "do not fit together" in error_of(v=case["v"][:, :, 1:])
