"""The compiled kernels of fast weights equal the sequential definition in float64, and the chunkwise torch form."""

from __future__ import annotations

import importlib
import itertools
import types
from typing import Any

import pytest
import torch
from torch import Tensor

from bouton.errors import KernelError
from bouton.ops import backends
from bouton.ops.fast_weights import OP, RULES, fast_weights, fast_weights_reference, rust

built = pytest.mark.skipif(rust.why_not() is not None, reason=str(rust.why_not()))

TRAINED = ("q", "k", "v", "eta", "rho_f", "rho_s", "eta_s", "gate", "fast", "slow")
SHAPES = {
    "ragged": (2, 3, 37, 5, 19),
    "whole groups": (1, 2, 32, 16, 32),
    "columns cut": (1, 1, 21, 3, 85),
    "decoding": (2, 2, 1, 16, 80),
}


def make_case(batch: int, heads: int, tokens: int, rank: int, width: int) -> dict[str, Tensor]:
    """float64 numbers that float32 holds exactly."""
    g = torch.Generator().manual_seed(tokens + width)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g).double()

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return (low + (high - low) * torch.rand(*shape, generator=g)).double()

    return {
        "q": torch.nn.functional.normalize(normal(batch, heads, tokens, rank), dim=-1).float().double(),
        "k": torch.nn.functional.normalize(normal(batch, heads, tokens, rank), dim=-1).float().double(),
        "v": normal(batch, heads, tokens, width),
        "eta": uniform(0.05, 0.9, batch, heads, tokens),  # with |v| about 1, Oja's decay reaches 0 at some tokens
        "rho_f": uniform(0.6, 0.99, heads),
        "rho_s": uniform(0.8, 0.99, heads),
        "eta_s": uniform(0.1, 0.5, heads),
        "gate": uniform(0.0, 1.0, batch, heads, tokens),
        "fast": normal(batch, heads, rank, width),
        "slow": normal(batch, heads, rank, width),
    }


def make_starts(case: dict[str, Tensor]) -> Tensor:
    batch, _, tokens, _ = case["q"].shape
    return torch.rand(batch, tokens, generator=torch.Generator().manual_seed(3)) < 0.1


def run(case: dict[str, Tensor], backend: str, dtype: torch.dtype, slow: bool, **options: Any) -> dict[str, Tensor]:
    """Results, and gradients of a fixed random function of them in every leaf that is used; backend "" is the
    definition."""
    x = {name: value.to(dtype).requires_grad_() for name, value in case.items()}
    gate = x["gate"] if options.pop("gated", False) and slow else None
    common: dict[str, Any] = {"rho_f": x["rho_f"], "rho_s": x["rho_s"], "gate": gate, **options}
    inputs = (x["q"], x["k"], x["v"], x["eta"])
    if backend:
        state = {name: x[name] for name in (("fast", "slow") if slow else ("fast",))}
        eta_s = x["eta_s"] if slow else 0.0
        read, after = fast_weights(*inputs, **common, eta_s=eta_s, state=state, backend=backend)
    else:
        state = {"fast": x["fast"], "slow": x["slow"] if slow else torch.zeros_like(x["slow"])}
        eta_s = x["eta_s"] if slow else torch.zeros_like(x["eta_s"])
        read, after = fast_weights_reference(*inputs, **common, eta_s=eta_s, state=state)
        if not slow:
            after.pop("slow")
    g = torch.Generator().manual_seed(1)
    results = {"read": read, **after}
    loss = sum((y * torch.randn(y.shape, generator=g).to(y.dtype)).sum() for y in results.values())
    assert isinstance(loss, Tensor)
    used = [name for name in TRAINED if slow or name not in ("rho_s", "eta_s", "slow", "gate")]
    used = [name for name in used if name != "gate" or gate is not None]
    grads = torch.autograd.grad(loss, [x[name] for name in used])
    return {name: y.detach() for name, y in results.items()} | {
        f"d{name}": grad for name, grad in zip(used, grads, strict=True)
    }


def assert_near(found: dict[str, Tensor], exact: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == exact.keys()
    for name, x in exact.items():
        assert found[name].shape == x.shape, name
        # Gradients of the decays are sums of many terms that may cancel, and a reset may leave none: hence the floor.
        error = (found[name].double() - x).norm() / x.norm().clamp_min(0.1)
        assert error < tolerance, f"{name}: relative error {error:.1e}"


@built
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_values_gradients_and_state(shape: tuple[int, ...], rule: str) -> None:
    case = make_case(*shape)
    for slow, gated, resets in ((True, True, True), (True, False, False), (False, False, True), (False, False, False)):
        options: dict[str, Any] = {"rule": rule, "gated": gated, "starts": make_starts(case) if resets else None}
        exact = run(case, "", torch.float64, slow, **options)
        assert_near(run(case, "rust", torch.float32, slow, **options), exact, 5e-6)
        assert_near(run(case, "torch", torch.float32, slow, **options), exact, 5e-5)


@built
@pytest.mark.parametrize("rule", RULES)
def test_halves_are_computed_in_float32(rule: str) -> None:
    case = {name: x.bfloat16().double() for name, x in make_case(2, 2, 40, 8, 24).items()}
    found = run(case, "rust", torch.bfloat16, True, rule=rule)
    assert found["read"].dtype == torch.bfloat16
    assert found["fast"].dtype == torch.float32
    exact = run(case, "", torch.float64, True, rule=rule)
    assert_near({"fast": found["fast"], "slow": found["slow"]}, {name: exact[name] for name in ("fast", "slow")}, 5e-6)
    assert_near(found, exact, 6e-3)


@built
def test_strided_inputs_broadcast_rates_and_one_tensor_for_both() -> None:
    """Heads that are views of one projection, q = k, a rate per head."""
    x = torch.randn(2, 21, 4 * 8, generator=torch.Generator().manual_seed(0))
    y = torch.randn(2, 21, 4 * 12, generator=torch.Generator().manual_seed(1))

    def results(backend: str, copied: bool) -> list[Tensor]:
        leaf, value, eta = x.clone().requires_grad_(), y.clone().requires_grad_(), torch.rand(4, 1).fill_(0.3)
        eta.requires_grad_()
        k = torch.nn.functional.normalize(leaf.unflatten(-1, (4, -1)).transpose(1, 2), dim=-1)
        v = value.unflatten(-1, (4, -1)).transpose(1, 2)
        k, v = (k.contiguous(), v.contiguous()) if copied else (k, v)
        read, state = fast_weights(k, k, v, eta, rho_f=0.9, rho_s=0.99, eta_s=0.1, rule="delta", backend=backend)
        loss = (read * y.unflatten(-1, (4, -1)).transpose(1, 2)).sum() + state["slow"].square().sum()
        return [read.detach(), *torch.autograd.grad(loss, (leaf, value, eta))]

    expected = results("torch", True)
    for copied in (True, False):
        for found, wanted in zip(results("rust", copied), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=2e-5, atol=2e-5)


@built
@pytest.mark.parametrize("rule", RULES)
def test_any_split_equals_the_whole_bit_for_bit(rule: str) -> None:
    case = {name: x.float() for name, x in make_case(2, 2, 37, 8, 24).items()}
    starts = make_starts(case)
    constants: dict[str, Any] = {name: case[name] for name in ("rho_f", "rho_s", "eta_s")}

    def piece(begin: int, end: int, state: dict[str, Tensor] | None) -> tuple[Tensor, dict[str, Tensor]]:
        cut: dict[str, Any] = {name: case[name][:, :, begin:end] for name in ("q", "k", "v", "eta", "gate")}
        return fast_weights(**cut, **constants, rule=rule, state=state, starts=starts[:, begin:end], backend="rust")

    whole, final = piece(0, 37, None)
    for bounds in (list(range(38)), [0, 1, 8, 20, 21, 37]):  # token by token, and uneven pieces
        state, reads = None, []
        for begin, end in itertools.pairwise(bounds):
            read, state = piece(begin, end, state)
            reads.append(read)
        assert torch.equal(torch.cat(reads, dim=2), whole)
        assert state is not None
        assert all(torch.equal(state[name], final[name]) for name in final)


@built
def test_threads_change_nothing() -> None:
    before = torch.get_num_threads()
    cases = [make_case(1, 1, 64, 16, 85), make_case(2, 4, 40, 16, 40)]  # columns of one head, and whole heads
    try:
        for case in cases:
            found = []
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                found.append(run(case, "rust", torch.float32, True, rule="delta", gated=True))
            assert all(torch.equal(found[0][name], other[name]) for other in found[1:] for name in other)
    finally:
        torch.set_num_threads(before)


@built
@pytest.mark.parametrize("rule", RULES)
def test_operators_are_well_formed(rule: str) -> None:
    x = {name: value.float().requires_grad_() for name, value in make_case(1, 2, 9, 4, 6).items()}
    by_token = [x[name].detach().transpose(1, 2).requires_grad_() for name in ("q", "k", "v", "eta", "gate")]
    rates = torch.stack((x["rho_f"], x["rho_s"], x["eta_s"])).detach().requires_grad_()
    starts = torch.zeros(1, 9, dtype=torch.bool)
    torch.library.opcheck(rust._forward, (*by_token, rates, x["fast"], x["slow"], starts, rule, True))
    torch.library.opcheck(rust._forward, (*by_token[:4], None, rates, x["fast"], None, None, rule, True))


@built
def test_compiles_into_one_graph() -> None:
    case = {name: x.float() for name, x in make_case(1, 2, 20, 4, 6).items()}

    def loss(v: Tensor, eta_s: Tensor | float) -> Tensor:
        read, state = fast_weights(
            case["q"], case["k"], v, case["eta"], rho_f=case["rho_f"], rho_s=0.99, eta_s=eta_s, rule="delta",
            backend="rust",
        )  # fmt: skip
        return read.square().sum() + state["fast"].sum()

    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for eta_s in (0.0, case["eta_s"]):
        v = case["v"].clone().requires_grad_()
        (expected,) = torch.autograd.grad(loss(v, eta_s), v)
        (found,) = torch.autograd.grad(compiled(v, eta_s), v)
        torch.testing.assert_close(found, expected)


@built
def test_taken_where_it_can_run_and_refused_where_not() -> None:
    case = make_case(1, 1, 3, 2, 2)
    single = [case[name].float() for name in ("q", "k", "v", "eta")]
    constants: dict[str, Any] = {"rho_f": 0.9, "rho_s": 0.9, "eta_s": 0.1}
    assert backends.refusals(OP, "cpu").get("rust") is None
    backends.configure()
    fast_weights(*single, **constants)
    assert [choice.backend for choice in backends.report() if choice.op == OP] == ["rust"]
    with pytest.raises(KernelError, match=r"rust.*not in float64"):
        fast_weights(*(case[name] for name in ("q", "k", "v", "eta")), **constants, backend="rust")
    with pytest.raises(KernelError, match=r"rust.*at least one token"):
        fast_weights(*(x[:, :, :0] for x in single), **constants, backend="rust")
    assert fast_weights(*(x[:, :, :0] for x in single), **constants)[0].shape == (1, 1, 0, 2)


@built
def test_the_kernels_check_what_they_are_given() -> None:
    x = make_case(1, 2, 5, 3, 4)
    q, k, v, eta = (x[name].float().transpose(1, 2).contiguous() for name in ("q", "k", "v", "eta"))
    rates = torch.full((3, 2), 0.5)
    good = rust._call(q, k, v, eta, None, rates, x["fast"].float(), None, None, "hebb")
    for name, value, message in (
        ("k", good["k"][:, 1:], "k has shape"),
        ("rates", good["rates"][:2], "rates has shape"),
        ("v", good["v"].transpose(0, 3, 2, 1), "v has shape|v must be contiguous"),
        ("starts", torch.zeros(1, 4, dtype=torch.uint8).numpy(), "starts has shape"),
        ("rule", "bcm", "rule = 'bcm' is unknown; known: hebb, oja, delta"),
    ):
        with pytest.raises(ValueError, match=message):
            rust._kernels().fast_weights(good | {name: value}, False, 1)
    with pytest.raises(ValueError, match="boundaries has 1 elements"):
        rust._kernels().fast_weights_backward(good, torch.zeros(1).numpy(), good["v"], good["fast"], None, 1)


def test_a_missing_or_older_wheel_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    rust._load.cache_clear()
    try:
        monkeypatch.setattr(importlib, "import_module", lambda name: types.ModuleType(name))
        assert "older than this op" in str(rust.why_not())
        rust._load.cache_clear()

        def missing(name: str) -> types.ModuleType:
            raise ImportError(f"no module {name}")

        monkeypatch.setattr(importlib, "import_module", missing)
        assert "is not installed" in str(rust.why_not())
    finally:
        monkeypatch.undo()
        rust._load.cache_clear()
