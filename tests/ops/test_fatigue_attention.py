"""Presynaptic-fatigue attention: every execution equals the sequential definition, in values and gradients."""

from __future__ import annotations

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
