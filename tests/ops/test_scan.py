"""The recurrences: every form equals the sequential definition in value, state and all gradients."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from bouton.errors import KernelError
from bouton.ops.scan import affine_scan, max_affine_scan, rust, scan_reference
from bouton.ops.scan import torch as torch_form

FORMS = [
    pytest.param("torch", torch.float64, id="torch"),
    pytest.param(
        "rust", torch.float32, id="rust", marks=pytest.mark.skipif(rust.why_not() is not None, reason="no wheel")
    ),
]
NAMES = [pytest.param(form.values[0], id=form.id, marks=form.marks) for form in FORMS]
SHAPES: dict[str, tuple[str, ...]] = {
    "number": (),
    "per channel": ("N",),
    "per token": ("T", "1"),
    "per token of a row": ("B", "T", "1"),
    "whole": ("B", "T", "N"),
}


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_case(
    size: tuple[int, int, int], a: str = "whole", floor: str | None = None, starts: bool = False, seed: int = 0
) -> dict[str, Any]:
    """float64 numbers that float32 holds too; factors in (-0.3, 1.1), some of them 0."""
    g = torch.Generator().manual_seed(seed)
    sizes = dict(zip("BTN", size, strict=True), **{"1": 1})

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g).double()

    def shaped(name: str) -> Tensor:
        return normal(*(sizes[axis] for axis in SHAPES[name]))

    factor = 0.4 + 0.7 * shaped(a).tanh()
    return {
        "a": factor.where(factor.abs() > 0.05, 0.0).float().double(),
        "x": normal(*size),
        "floor": None if floor is None else 0.5 * shaped(floor),
        "state": normal(size[0], size[2]),
        "starts": torch.rand(size[:2], generator=g) < 0.2 if starts else None,
    }


def call(case: dict[str, Any], backend: str) -> tuple[Tensor, Tensor]:
    if backend == "reference":
        return scan_reference(**case)
    if case["floor"] is None:
        return affine_scan(case["a"], case["x"], case["state"], case["starts"], backend=backend)
    return max_affine_scan(**case, backend=backend)


def results(case: dict[str, Any], backend: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """y, the state, and the gradients of a fixed random function of both in every input."""
    leaves = {
        name: x.to(dtype).clone().requires_grad_() for name, x in case.items() if x is not None and name != "starts"
    }
    y, last = call(case | leaves, backend)
    g = torch.Generator().manual_seed(1)
    loss = sum((out * torch.randn(out.shape, generator=g)).sum() for out in (y, last))
    grads = torch.autograd.grad(loss, list(leaves.values()))
    return {"y": y.detach(), "last": last.detach()} | {
        f"d{name}": grad for name, grad in zip(leaves, grads, strict=True)
    }


def assert_equal(case: dict[str, Any], backend: str, dtype: torch.dtype, label: str = "") -> None:
    exact = results(case, "reference", torch.float64)
    for name, found in results(case, backend, dtype).items():
        assert found.dtype == dtype and found.shape == exact[name].shape, f"{label} {name}"
        # Gradients of what many tokens share are sums that may cancel.
        error = (found.double() - exact[name]).norm() / exact[name].norm().clamp_min(1e-2)
        assert error < (1e-12 if dtype == torch.float64 else 1e-5), f"{label} {name}: relative error {error:.1e}"


@pytest.mark.parametrize(("backend", "dtype"), FORMS)
@pytest.mark.parametrize("starts", [False, True])
@pytest.mark.parametrize("floor", [None, *SHAPES])
def test_value_state_and_gradients_equal_the_definition(
    floor: str | None, starts: bool, backend: str, dtype: torch.dtype
) -> None:
    for a, tokens in itertools.product(SHAPES, (1, 2, 3, 6, 13, 70)):
        assert_equal(make_case((2, tokens, 5), a, floor, starts, tokens), backend, dtype, f"{a} T={tokens}")


@pytest.mark.parametrize(("backend", "dtype"), FORMS)
@pytest.mark.parametrize("floor", [None, "per channel"])
def test_more_channels_than_a_job_of_the_kernel_takes(floor: str | None, backend: str, dtype: torch.dtype) -> None:
    for channels in (256, 257, 600):
        assert_equal(make_case((2, 9, channels), "per channel", floor, True), backend, dtype)
        assert_equal(make_case((1, 9, channels), "whole", floor, False), backend, dtype)


@pytest.mark.parametrize(("backend", "dtype"), FORMS)
@pytest.mark.parametrize("floor", [None, "whole"])
def test_any_split_equals_the_whole(floor: str | None, backend: str, dtype: torch.dtype) -> None:
    case = make_case((2, 37, 4), "whole", floor, True)
    whole = {name: None if x is None else x if name == "starts" else x.to(dtype) for name, x in case.items()}
    y, last = call(whole, backend)
    for bounds in (list(range(38)), [0, 1, 8, 20, 21, 37]):  # token by token, and uneven pieces
        state, parts = whole["state"], []
        for begin, end in itertools.pairwise(bounds):
            piece = {name: None if x is None else x[:, begin:end] for name, x in whole.items() if name != "state"}
            part, state = call({**piece, "state": state}, backend)
            parts.append(part)
        tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-13}
        torch.testing.assert_close(torch.cat(parts, dim=1), y, **tolerance)
        torch.testing.assert_close(state, last, **tolerance)


@pytest.mark.parametrize("floor", [None, "per channel"])
def test_gradcheck_and_second_derivatives(floor: str | None) -> None:
    case = make_case((2, 5, 2), "whole", floor, True)
    names = [name for name, x in case.items() if x is not None and name != "starts"]
    leaves = [case[name].requires_grad_() for name in names]

    def of_leaves(*values: Tensor) -> tuple[Tensor, Tensor]:
        return call(case | dict(zip(names, values, strict=True)), "torch")

    assert torch.autograd.gradcheck(of_leaves, leaves)
    assert torch.autograd.gradgradcheck(of_leaves, leaves)


@pytest.mark.parametrize("backend", ["reference", *NAMES])
def test_a_tie_is_the_floors(backend: str) -> None:
    """At 0.5 * 2 + 1 = 2 against a floor of 2 the gradient is the floor's; just above it is the branch's."""
    for tokens, x, taken in ((1, 1.0, 1.0), (1, 1.5, 0.0), (3, 1.0, 1.0), (3, 1.5, 0.0)):
        inputs = [torch.full((1, tokens, 1), value, requires_grad=True) for value in (0.5, x, 2.0)]
        state = torch.full((1, 1), 2.0, requires_grad=True)
        a, drive, floor = inputs
        case = {"a": a, "x": drive, "floor": floor, "state": state, "starts": None}
        y, _ = call(case, backend)
        grads = torch.autograd.grad(y[:, 0].sum(), [*inputs, state])
        assert y[0, 0, 0] == 1 + x
        assert [grad.flatten()[0].item() for grad in grads] == [2 * (1 - taken), 1 - taken, taken, 0.5 * (1 - taken)]


@pytest.mark.parametrize("backend", ["reference", *NAMES])
@pytest.mark.parametrize("floor", [None, -0.5])
def test_a_document_knows_nothing_of_the_one_before(floor: float | None, backend: str) -> None:
    """Neither a value nor a gradient passes its start, not even one that is no number."""
    case = make_case((1, 12, 3))
    case = {name: None if x is None else x.float() for name, x in case.items()}
    case["starts"] = torch.arange(12)[None] == 5
    if floor is not None:
        case["floor"] = torch.full((1, 1, 1), floor)
    alone = {name: x[:, 5:] if name in ("a", "x") else x for name, x in case.items()}
    expected, _ = call(alone | {"state": torch.zeros(1, 3), "starts": None}, backend)
    case["x"][:, 2] = torch.nan
    case["state"][:] = torch.inf
    x = case["x"].requires_grad_()
    y, _ = call(case, backend)
    torch.testing.assert_close(y[:, 5:], expected)
    upstream = torch.ones_like(y)
    upstream[:, 8] = torch.nan
    (grad,) = torch.autograd.grad(y, x, upstream)
    assert grad[:, 3:5].isfinite().all() and not grad[:, 5:9].isfinite().all()


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("decay", [0.0, 1e-30, 1e-6, 1.0])
def test_extreme_decays_stay_exact_in_float32(decay: float, backend: str) -> None:
    """No quotient of decays is taken: it would overflow here."""
    x = torch.randn(1, 400, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    a = torch.full((3,), decay, requires_grad=True)
    for floor in (None, -torch.inf):
        y, _ = affine_scan(a, x, backend=backend) if floor is None else max_affine_scan(a, x, floor, backend=backend)
        exact, _ = scan_reference(a.double(), x.double(), None, torch.zeros(1, 3).double(), None)
        assert (y.double() - exact).norm() < 1e-6 * exact.norm()
        for grad in torch.autograd.grad(y.square().mean(), (a, x)):
            assert grad.isfinite().all()


@pytest.mark.parametrize("backend", NAMES)
def test_no_floor_at_all_is_the_affine_scan(backend: str) -> None:
    case = {name: x for name, x in make_case((2, 33, 4)).items() if name not in ("floor", "starts")}
    case = {name: x.float() for name, x in case.items()}
    plain, last = affine_scan(**case, backend=backend)
    bounded, bounded_last = max_affine_scan(**case, floor=-torch.inf, backend=backend)
    torch.testing.assert_close(bounded, plain)
    torch.testing.assert_close(bounded_last, last)


def test_merging_neighbours_is_associative() -> None:
    """The tree may merge tokens in any order: solving the pairs of (1, 2), (3, 4), ... gives the same ends."""
    for floor in (None, "whole"):
        case = make_case((2, 16, 3), "whole", floor)
        y, _ = torch_form.scan_torch(**case)
        head = {name: x if x is None or name == "state" else x[:, :7] for name, x in case.items()}
        tail = {name: x if x is None or name == "state" else x[:, 7:] for name, x in case.items()}
        middle = torch_form.scan_torch(**head)[1]
        torch.testing.assert_close(torch_form.scan_torch(**(tail | {"state": middle}))[0], y[:, 7:])


@pytest.mark.parametrize("backend", NAMES)
def test_strided_and_expanded_inputs(backend: str) -> None:
    case = {name: None if x is None else x.float() for name, x in make_case((3, 11, 4), "per channel").items()}
    turned = case["x"].permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert not turned.is_contiguous()
    y, last = call(case, backend)
    other, other_last = call(
        {**case, "x": turned, "a": case["a"].expand(3, 11, 4), "state": case["state"].T.contiguous().T}, backend
    )
    torch.testing.assert_close(other, y)
    torch.testing.assert_close(other_last, last)


@pytest.mark.parametrize("backend", NAMES)
def test_halves_are_rounded_at_the_ends_alone(backend: str) -> None:
    x = torch.randn(2, 40, 3, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    single = x.detach().float().requires_grad_()
    y, state = affine_scan(0.95, x, backend=backend)
    exact, exact_state = affine_scan(0.95, single, backend=backend)
    assert y.dtype == torch.bfloat16 and torch.equal(y, exact.bfloat16())
    assert state.dtype == torch.float32 and torch.equal(state, exact_state)
    y.backward(torch.ones_like(y))
    exact.backward(torch.ones_like(exact))
    assert x.grad is not None and single.grad is not None
    assert torch.equal(x.grad, single.grad.bfloat16())


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("floor", [None, 0.1])
def test_compiles_into_one_graph(floor: float | None, backend: str) -> None:
    state = torch.ones(2, 3)
    starts = torch.arange(9).expand(2, 9) == 4

    def loss(a: Tensor, x: Tensor) -> Tensor:
        if floor is None:
            y, last = affine_scan(a, x, state, starts, backend=backend)
        else:
            y, last = max_affine_scan(a, x, floor, state, starts, backend=backend)
        return y.square().sum() + last.sum()

    case = make_case((2, 9, 3))
    for compiler in (loss, torch.compile(loss, backend="aot_eager", fullgraph=True)):
        case[str(compiler)] = [case[name].float().clone().requires_grad_() for name in ("a", "x")]
        compiler(*case[str(compiler)]).backward()
    eager, compiled = list(case.values())[-2:]
    for mine, theirs in zip(eager, compiled, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


@pytest.mark.skipif(rust.why_not() is not None, reason="no wheel")
@pytest.mark.parametrize("floor", [None, "per channel"])
def test_opcheck(floor: str | None) -> None:
    case = make_case((2, 9, 3), "whole", floor, True)
    inputs = [
        x if x is None or name == "starts" else x.float().requires_grad_()
        for name, x in ((name, case[name]) for name in ("a", "x", "floor", "state", "starts"))
    ]
    inputs[2] = None if floor is None else case["floor"].float().reshape(1, 1, 3).requires_grad_()
    torch.library.opcheck(torch.ops.bouton.scan_rust.default, inputs)


@pytest.mark.skipif(rust.why_not() is not None, reason="no wheel")
def test_bits_do_not_depend_on_threads() -> None:
    case = make_case((2, 200, 300), "per channel", "number", True)
    alone = results(case, "rust", torch.float32)
    for threads in (2, 5):
        torch.set_num_threads(threads)
        found = results(case, "rust", torch.float32)
        assert all(torch.equal(alone[name], found[name]) for name in alone)


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (2, 5, 0), (2, 1, 0), (0, 1, 3)])
def test_empty_dimensions(shape: tuple[int, int, int], backend: str) -> None:
    state = torch.randn(shape[0], shape[2])
    y, last = max_affine_scan(0.5, torch.zeros(shape), 0.0, state, backend=backend)
    assert y.shape == shape and last.shape == state.shape
    if shape[1] == 0:
        assert torch.equal(last, state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3, 4)}, r"x \(3, 4\) must be \(B, T, N\)"),
        ({"x": torch.zeros(2, 5, 3, dtype=torch.int64)}, "floating-point"),
        ({"a": torch.zeros(4)}, r"a \(4,\) cannot be broadcast to x \(2, 5, 3\)"),
        ({"a": torch.zeros(1, 2, 5, 3)}, "cannot be broadcast"),
        ({"floor": torch.zeros(5)}, r"floor \(5,\) cannot be broadcast"),
        ({"state": torch.zeros(3)}, r"state \(3,\) must be \(B, N\)"),
        ({"starts": torch.zeros(2, 4, dtype=torch.bool)}, r"starts \(2, 4\)"),
        ({"starts": torch.zeros(2, 5)}, r"torch.float32 must be .* torch.bool"),
        ({"backend": "triton"}, "op 'scan' cannot run on backend 'triton': not written for this op"),
        ({"backend": "cuda"}, "backend = 'cuda' is unknown; known: auto, rust, torch, triton"),
    ],
)
def test_bad_input_is_refused_in_one_line(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"a": 0.9, "x": torch.zeros(2, 5, 3), "floor": 0.0} | change
    with pytest.raises(KernelError, match=message) as caught:
        max_affine_scan(**given)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(rust.why_not() is not None, reason="no wheel")
def test_rust_says_that_it_does_not_compute_in_float64() -> None:
    with pytest.raises(KernelError, match="computes in float32, not in float64"):
        affine_scan(0.9, torch.zeros(2, 5, 3).double(), backend="rust")
    y, _ = affine_scan(0.9, torch.zeros(2, 5, 3).double())
    assert y.dtype == torch.float64
