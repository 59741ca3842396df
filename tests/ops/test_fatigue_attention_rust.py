"""The compiled kernels of fatigue attention equal the sequential definition in float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bouton.errors import KernelError
from bouton.ops.fatigue_attention import Kinetics, fatigue_attention, reference, rust

pytestmark = pytest.mark.skipif(rust.why_not() is not None, reason=str(rust.why_not()))

TYPICAL = Kinetics(*(torch.tensor(x) for x in (0.85, 0.55, 0.7, 3.0, -0.8, 1.0, 0.9, 1.0, 1.0, 1e-2)))
TENSORS = ("q", "k", "v", *Kinetics._fields, "calcium", "pool")


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_case(
    batch: int, heads: int, kv_heads: int, tq: int, old: int, dim: int, lam: float = 1.0, s: float = 3.0
) -> dict[str, Tensor]:
    """float32 leaves by name; the state is that of the old keys."""
    g = torch.Generator().manual_seed(tq + old)
    kinetics = {
        name: (x * (1 - 0.05 * torch.rand(heads, generator=g)))
        for name, x in TYPICAL._replace(s=torch.tensor(s))._asdict().items()
    }
    kinetics["lam"] = torch.full((heads,), lam)
    return {
        "q": torch.randn(batch, heads, tq, dim, generator=g),
        "k": torch.randn(batch, kv_heads, tq + old, dim, generator=g),
        "v": torch.randn(batch, kv_heads, tq + old, dim, generator=g),
        **kinetics,
        "calcium": torch.rand(batch, heads, old, generator=g),
        "pool": 0.2 + 0.7 * torch.rand(batch, heads, old, generator=g),
    }


def segments_of(case: dict[str, Tensor]) -> dict[str, Tensor]:
    batch, _, tq, _ = case["q"].shape
    tk = case["k"].shape[2]
    starts = torch.rand(batch, tk, generator=torch.Generator().manual_seed(3)) < 0.06
    ids = starts.cumsum(1)
    return {"segments_q": ids[:, tk - tq :], "segments_k": ids}


def run(backend: Any, case: dict[str, Tensor], dtype: torch.dtype, **options: Any) -> dict[str, Tensor]:
    """Results, and gradients of a fixed random function of them in every leaf."""
    leaves = {name: case[name].to(dtype).requires_grad_() for name in TENSORS}
    kinetics = Kinetics(*(leaves[name] for name in Kinetics._fields))
    batch, heads, tq, _ = case["q"].shape
    fresh = torch.zeros(batch, heads, tq, dtype=dtype)
    calcium = torch.cat((leaves["calcium"], fresh), -1)
    pool = torch.cat((leaves["pool"], fresh + kinetics.r_max[:, None]), -1)
    options = {"rule": "min", "release": "kinetic", **options}
    results = backend.forward(leaves["q"], leaves["k"], leaves["v"], kinetics, calcium, pool, **options)
    g = torch.Generator().manual_seed(1)
    loss = sum((x * torch.randn(x.shape, generator=g).to(dtype)).sum() for x in results)
    assert isinstance(loss, Tensor)
    grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    named = dict(zip(("out", "calcium_after", "pool_after"), (x.detach() for x in results), strict=True))
    return named | {
        f"d{name}": torch.zeros_like(leaf) if grad is None else grad
        for (name, leaf), grad in zip(leaves.items(), grads, strict=True)
    }


def assert_equal(case: dict[str, Tensor], **options: Any) -> None:
    found = run(rust, case, torch.float32, **options)
    exact = run(reference, case, torch.float64, **options)
    for name, x in exact.items():
        kinetic = name.startswith("d") and name[1:] in Kinetics._fields
        # Gradients of the kinetics are sums of many terms that may cancel altogether: hence their floor.
        error = (found[name].double() - x).norm() / x.norm().clamp_min(0.05 if kinetic else 1e-4)
        tolerance = 5e-4 if kinetic else 8e-6 if name.startswith("d") else 2e-6
        assert error < tolerance, f"{name}: relative error {error:.1e}"


SHAPES = {
    "grouped": (2, 4, 2, 19, 0, 7),
    "old keys": (1, 2, 2, 33, 67, 24),
    "several blocks": (1, 2, 1, 77, 0, 33),
    "few queries": (2, 3, 1, 4, 66, 9),
    "decoding": (2, 2, 1, 1, 70, 64),
}


@pytest.mark.parametrize("rule", reference.RULES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_values_and_gradients(shape: tuple[int, ...], rule: str) -> None:
    assert_equal(make_case(*shape), rule=rule)


@pytest.mark.parametrize("gone", [0, 5])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_inference_takes_the_state_of_the_old_keys_as_it_lies(shape: tuple[int, ...], gone: int) -> None:
    """Without gradients the kernel itself puts new keys behind the old ones, of which a state may have more."""
    case = make_case(*shape)
    kinetics = Kinetics(*(case[name] for name in Kinetics._fields))
    left = torch.full((*case["q"].shape[:2], gone), 7.0)
    state = {name: torch.cat((left, case[name]), -1) for name in ("calcium", "pool")}
    arguments = (case["q"], case["k"], case["v"], kinetics, state)
    out, after = fatigue_attention(*arguments, backend="rust")
    case["q"].requires_grad_()
    expected, after_expected = fatigue_attention(*arguments, backend="rust")
    assert expected.requires_grad
    assert not out.requires_grad
    assert torch.equal(out, expected)
    for name, x in after.items():
        assert torch.equal(x, after_expected[name]), name


@pytest.mark.parametrize("rule", reference.RULES)
@pytest.mark.parametrize(("lam", "s"), [(0.5, 3.0), (1.0, 9.0), (0.0, 3.0)])
def test_any_exponent_and_gain(lam: float, s: float, rule: str) -> None:
    assert_equal(make_case(1, 2, 1, 37, 5, 16, lam, s), rule=rule)


@pytest.mark.parametrize("release", reference.RELEASES)
@pytest.mark.parametrize("window", [None, 2, 9, 70])
@pytest.mark.parametrize("segmented", [False, True])
@pytest.mark.parametrize("rule", reference.RULES)
def test_windows_segments_and_age(rule: str, segmented: bool, window: int | None, release: str) -> None:
    case = make_case(2, 2, 1, 40, 100, 8)
    options = segments_of(case) if segmented else {}
    assert_equal(case, rule=rule, release=release, window=window, **options)


def test_public_function_takes_it_and_refuses_what_it_cannot() -> None:
    case = make_case(1, 2, 1, 6, 3, 8)
    kinetics = Kinetics(*(case[name] for name in Kinetics._fields))
    state = {"calcium": case["calcium"], "pool": case["pool"]}
    q, k, v = case["q"], case["k"], case["v"]
    out, after = fatigue_attention(q, k, v, kinetics, state, backend="rust")
    expected, known = fatigue_attention(q, k, v, kinetics, state, backend="torch")
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(after, known)
    with pytest.raises(KernelError, match="float32"):
        fatigue_attention(q.double(), k.double(), v.double(), kinetics, backend="rust")
    with pytest.raises(KernelError, match="bias"):
        fatigue_attention(q, k, v, kinetics, state, bias=torch.zeros(6, 9), backend="rust")


def test_query_that_sees_nothing_reads_zero() -> None:
    case = make_case(1, 2, 1, 6, 0, 8)
    segments = {"segments_q": torch.tensor([[0, 0, 7, 0, 0, 0]]), "segments_k": torch.zeros(1, 6, dtype=torch.int64)}
    found = run(rust, case, torch.float32, **segments)
    assert torch.equal(found["out"][:, :, 2], torch.zeros(1, 2, 8))
    assert_equal(case, **segments)


def test_window_of_one_reads_the_value_at_the_query() -> None:
    case = make_case(1, 2, 2, 6, 3, 8)
    torch.testing.assert_close(run(rust, case, torch.float32, window=1)["out"], case["v"][:, :, 3:])


def test_strided_inputs() -> None:
    case = make_case(2, 4, 2, 19, 0, 8)
    strided = {name: case[name].transpose(1, 2).contiguous().transpose(1, 2) for name in ("q", "k", "v")}
    plain, found = (run(rust, x, torch.float32) for x in (case, case | strided))
    assert all(torch.equal(plain[name], found[name]) for name in plain)


def test_bits_do_not_depend_on_threads() -> None:
    case = make_case(2, 4, 2, 70, 20, 16)
    alone = run(rust, case, torch.float32)
    for threads in (2, 5):
        torch.set_num_threads(threads)
        found = run(rust, case, torch.float32)
        assert all(torch.equal(alone[name], found[name]) for name in alone)


def call_of(case: dict[str, Tensor]) -> dict[str, Any]:
    """Arguments of the compiled function for a case without old keys."""
    arrays = {name: case[name].numpy() for name in ("q", "k", "v")}
    batch, heads, tq, _ = case["q"].shape
    kinetics = torch.stack([case[name] for name in Kinetics._fields])
    state = torch.ones(batch, heads, tq).numpy()
    rest = {"rule": "min", "release": "kinetic", "segments_q": None, "segments_k": None, "window": None}
    rest["old_state"] = False
    return {**arrays, "kinetics": kinetics.numpy(), "calcium": state, "pool": state, **rest}


def room_for(call: dict[str, Any]) -> dict[str, Any]:
    """What the forward pass without `keep` writes into."""
    empty = {name: np.empty_like(call[name]) for name in ("calcium", "pool")}
    return {**empty, "out": np.empty_like(call["q"]), "total": np.empty_like(call["q"][..., 0]), "boundaries": NONE}


NONE = np.empty(0, "float32")
BAD = {
    "k of another width": {"k": torch.ones(1, 1, 6, 7).numpy()},
    "v shorter": {"v": torch.ones(1, 1, 5, 8).numpy()},
    "no queries": {"q": torch.ones(1, 2, 0, 8).numpy()},
    "more queries than keys": {"q": torch.ones(1, 2, 9, 8).numpy()},
    "heads that do not divide": {"q": torch.ones(1, 3, 6, 8).numpy(), "k": torch.ones(1, 2, 6, 8).numpy()},
    "state of another length": {"pool": torch.ones(1, 2, 5).numpy()},
    "state of too few old keys": {"k": torch.ones(1, 1, 9, 8).numpy(), "v": torch.ones(1, 1, 9, 8).numpy()}
    | dict.fromkeys(("calcium", "pool"), torch.ones(1, 2, 2).numpy())
    | {"old_state": True},
    "kinetics of another shape": {"kinetics": torch.ones(9, 2).numpy()},
    "impossible kinetics": {"kinetics": -torch.ones(10, 2).numpy()},
    "strides": {"q": torch.ones(1, 2, 8, 6).mT.numpy()},
    "rule": {"rule": "max"},
    "release": {"release": ""},
    "window": {"window": 0},
    "one kind of segments": {"segments_q": torch.zeros(1, 6, dtype=torch.int64).numpy()},
    "loud logits": {"q": 1e6 * torch.ones(1, 2, 6, 8).numpy(), "k": torch.ones(1, 1, 6, 8).numpy()},
    "not a number": {"q": float("nan") * torch.ones(1, 2, 6, 8).numpy()},
}


@pytest.mark.parametrize("change", BAD.values(), ids=BAD)
def test_bad_inputs_are_value_errors(change: dict[str, Any]) -> None:
    kernels = pytest.importorskip(rust.WHEEL)
    call = call_of(make_case(1, 2, 1, 6, 0, 8))
    room = room_for(call)
    kernels.fatigue_attention(call, room, False, 1)
    with pytest.raises(ValueError, match=r"\w"):
        kernels.fatigue_attention(call | change, room, False, 1)


def test_bad_room_is_a_value_error() -> None:
    kernels = pytest.importorskip(rust.WHEEL)
    call = call_of(make_case(1, 2, 1, 6, 0, 8))
    room = room_for(call)
    sealed = np.empty_like(room["out"])
    sealed.flags.writeable = False
    for name, bad, words in (
        ("out", call["q"], "out cannot be written"),
        ("pool", call["pool"], "pool cannot be written"),
        ("pool", room["calcium"], "pool cannot be written"),
        ("out", sealed, "out cannot be written"),
        ("out", np.empty((1, 2, 8, 6), "float32").swapaxes(2, 3), "out must be contiguous"),
        ("total", np.empty((1, 2, 5), "float32"), "total has 10 elements, but 12 are needed"),
        ("boundaries", np.empty(3, "float32"), "boundaries has 3 elements, but 0 are needed"),
    ):
        with pytest.raises(ValueError, match=words):
            kernels.fatigue_attention(call, room | {name: bad}, False, 1)


def test_wrong_dtypes_and_missing_arguments_are_exceptions() -> None:
    kernels = pytest.importorskip(rust.WHEEL)
    call = call_of(make_case(1, 2, 1, 6, 0, 8))
    for bad in (call | {"q": call["q"].astype("float64")}, call | {"window": -1}, call | {"k": None}, {}):
        with pytest.raises((TypeError, ValueError, KeyError, OverflowError)):
            kernels.fatigue_attention(bad, room_for(call), False, 1)
    with pytest.raises(KeyError):
        kernels.fatigue_attention(call, {}, False, 1)
    wrong = call["calcium"]
    with pytest.raises(ValueError, match="boundaries"):
        saved = (call["q"], wrong, wrong.ravel()[:3], call["q"], wrong, wrong)
        room = {name: np.empty_like(call[name]) for name in ("q", "k", "v", "kinetics", "calcium", "pool")}
        kernels.fatigue_attention_backward(call, *saved, room, True, 1)


def test_compiles_into_one_graph() -> None:
    with torch.no_grad():
        case = make_case(1, 2, 1, 6, 0, 8)
    stacked = Kinetics(*(case[name] for name in Kinetics._fields))
    state = torch.zeros(1, 2, 6), torch.ones(1, 2, 6)

    def loss(q: Tensor) -> Tensor:
        return rust.forward(q, case["k"], case["v"], stacked, *state, rule="min", release="kinetic")[0].sum()

    eager, compiled = (case["q"].clone().requires_grad_() for _ in range(2))
    loss(eager).backward()
    torch.compile(loss, backend="aot_eager", fullgraph=True)(compiled).backward()
    torch.testing.assert_close(compiled.grad, eager.grad)


def test_bfloat16_is_rounded_at_the_ends_alone() -> None:
    g = torch.Generator().manual_seed(0)
    kinetics = Kinetics(*(x.expand(2).clone() for x in TYPICAL))
    halves = [torch.randn(1, 2, 37, 16, generator=g).bfloat16().requires_grad_() for _ in range(3)]
    singles = [x.detach().float().requires_grad_() for x in halves]
    out, state = fatigue_attention(*halves, kinetics, backend="rust")
    exact, exact_state = fatigue_attention(*singles, kinetics, backend="rust")
    assert out.dtype == torch.bfloat16 and torch.equal(out, exact.bfloat16())
    assert state["pool"].dtype == torch.float32 and torch.equal(state["pool"], exact_state["pool"])
    upstream = torch.randn(out.shape, generator=g).bfloat16()
    out.backward(upstream)
    exact.backward(upstream.float())
    for half, single in zip(halves, singles, strict=True):
        assert torch.equal(half.grad, single.grad.bfloat16())


@pytest.mark.parametrize(("tq", "tk"), [(1, 70), (3, 3), (70, 70), (130, 130)])
def test_plain_attention_is_plain_attention(tq: int, tk: int) -> None:
    g = torch.Generator().manual_seed(5)
    q = torch.randn(2, 4, tq, 24, generator=g, requires_grad=True)
    k, v = (torch.randn(2, 2, tk, 24, generator=g, requires_grad=True) for _ in range(2))
    bar = torch.randn(2, 4, tq, 24, generator=g)
    mask = torch.ones(tq, tk, dtype=torch.bool).tril(tk - tq)
    expected = torch.nn.functional.scaled_dot_product_attention(
        q.double(), k.double(), v.double(), attn_mask=mask, enable_gqa=True
    )
    exact = torch.autograd.grad(expected, (q, k, v), bar.double())
    found = rust.plain_attention(q, k, v)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    for name, x, y in zip("qkv", torch.autograd.grad(found, (q, k, v), bar), exact, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"d{name}: {m}")
