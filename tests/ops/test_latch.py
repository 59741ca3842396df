"""The latch: equal to its definition in value and gradients, and bistable as it should be."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from bouton.errors import KernelError
from bouton.ops.latch import REST, Rates, latch, latch_reference


def make_case(tokens: int, starts: bool = False, seed: int = 0) -> dict[str, Any]:
    g = torch.Generator().manual_seed(seed)
    return {
        "calcium": (0.8 + 0.8 * torch.randn(2, tokens, 3, generator=g)).abs().double(),
        "m": torch.rand(2, 3, generator=g).double(),
        "p": 0.3 + 0.7 * torch.rand(2, 3, generator=g).double(),
        "starts": torch.rand(2, tokens, generator=g) < 0.2 if starts else None,
    }


def results(case: dict[str, Any], reference: bool, dtype: torch.dtype, rates: Rates) -> dict[str, Tensor]:
    leaves = {name: case[name].to(dtype).clone().requires_grad_() for name in ("calcium", "m", "p")}
    calcium, m, p = leaves.values()
    if reference:
        outputs = latch_reference(calcium, rates, m, p, case["starts"])
    else:
        outputs = latch(calcium, rates, (m, p), case["starts"])
    g = torch.Generator().manual_seed(1)
    loss = torch.stack([(out * torch.randn(out.shape, generator=g)).sum() for out in outputs]).sum()
    grads = torch.autograd.grad(loss, list(leaves.values()))
    values = dict(zip(("m_t", "p_t"), (out.detach() for out in outputs), strict=True))
    return values | {f"d{name}": grad for name, grad in zip(leaves, grads, strict=True)}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("starts", [False, True])
@pytest.mark.parametrize("rates", [Rates(), Rates(n=2.5, gain=5.0, p_basal=0.1, a_ca=0.9)])
def test_value_and_gradients_equal_the_definition(rates: Rates, starts: bool, dtype: torch.dtype) -> None:
    for tokens, seed in itertools.product((1, 2, 7, 30), range(3)):
        case = make_case(tokens, starts, seed)
        exact = results(case, True, torch.float64, rates)
        for name, found in results(case, False, dtype, rates).items():
            assert found.dtype == dtype
            error = (found.double() - exact[name]).norm() / exact[name].norm().clamp_min(1e-2)
            assert error < (1e-12 if dtype == torch.float64 else 2e-4), f"{name}, T={tokens}: {error:.1e}"


def test_any_split_equals_the_whole() -> None:
    case = make_case(23, starts=True)
    whole = latch(case["calcium"], Rates(), (case["m"], case["p"]), case["starts"])
    state, parts = (case["m"], case["p"]), []
    for piece in (slice(0, 1), slice(1, 9), slice(9, 10), slice(10, 23)):
        m, p = latch(case["calcium"][:, piece], Rates(), state, case["starts"][:, piece])
        state = (m[:, -1], p[:, -1])
        parts.append((m, p))
    for i in range(2):
        torch.testing.assert_close(torch.cat([part[i] for part in parts], 1), whole[i], rtol=1e-13, atol=1e-13)


def gate(*phases: tuple[float, int]) -> Tensor:
    """m - p after every token of phases of constant calcium, from rest."""
    calcium = torch.cat([torch.full((length,), value) for value, length in phases]).double()
    m, p = latch(calcium.view(1, -1, 1), Rates())
    return (m - p).flatten()


def test_hysteresis() -> None:
    """Off at normal activity; a pulse latches it on and it stays on there; sustained low calcium erases it."""
    trace = gate((1.0, 100), (2.0, 6), (1.0, 500), (0.2, 40), (1.0, 200))
    off, pulse, on, erased, off_again = trace.split([100, 6, 500, 40, 200])
    assert (off < -0.5).all()
    assert pulse[-1] > 0.3
    assert (on > 0.3).all()
    assert erased[-1] < -0.5
    assert (off_again < -0.5).all()


def test_a_short_dip_does_not_erase() -> None:
    assert gate((2.0, 6), (1.0, 20), (0.2, 1), (1.0, 200))[-1] > 0.3


@pytest.mark.parametrize(("calcium", "states"), [(0.45, 1), (0.55, 2), (1.0, 2), (1.35, 2), (1.45, 1)])
def test_bistable_between_about_052_and_140(calcium: float, states: int) -> None:
    from_rest = gate((calcium, 3000))[-1]
    from_active = gate((2.0, 20), (calcium, 3000))[-1]
    assert (1 if (from_rest > 0) == (from_active > 0) else 2) == states


def test_rest_is_the_start() -> None:
    calcium = torch.rand(2, 5, 3)
    rest = tuple(torch.full((2, 3), value) for value in REST)
    for a, b in zip(latch(calcium, Rates()), latch(calcium, Rates(), rest), strict=True):  # type: ignore[arg-type]
        assert torch.equal(a, b)


def test_compiles_to_one_node() -> None:
    calcium = make_case(9)["calcium"].requires_grad_()
    compiled = torch.compile(lambda x: latch(x, Rates())[0].sum(), backend="aot_eager", fullgraph=True)
    (grad,) = torch.autograd.grad(compiled(calcium), calcium)
    (expected,) = torch.autograd.grad(latch(calcium, Rates())[0].sum(), calcium)
    torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"calcium": torch.zeros(2, 5)}, "calcium"),
        ({"starts": torch.zeros(2, 4, dtype=torch.bool)}, "starts"),
        ({"state": (torch.zeros(2, 4), torch.zeros(2, 4))}, "state"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(KernelError, match=message):
        latch(**{"calcium": torch.zeros(2, 5, 3), "rates": Rates(), **change})
