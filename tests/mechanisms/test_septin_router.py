"""septin_router: both axes against loops, dead slots, temperature as a limit, documents, and doing nothing at zero."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from bouton.errors import SocketError
from bouton.mechanisms import Vitals
from bouton.mechanisms.septin_router import RouterInhibition, SeptinRouterParams
from bouton.models.context import Context
from bouton.testing.arms import Arm, sample_tokens


def logits_with(dead: tuple[int, ...] = (), slots: int = 6) -> Tensor:
    logits = torch.randn(2, 9, slots, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits[..., list(dead)] = -math.inf
    return logits


def increment_of(logits: Tensor, starts: Tensor | None = None, **values: Any) -> Tensor:
    part = RouterInhibition(SeptinRouterParams(**values), 0)
    ctx = Context(torch.arange(logits.shape[1])[None], starts)
    increment: Tensor = part(torch.empty(0), logits, ctx, None)[0]
    return increment


@pytest.mark.parametrize("dead", [(), (1,), (0, 1, 3)])
@pytest.mark.parametrize("window", [1, 2, 9])
def test_experts_are_inhibited_by_their_living_neighbours(dead: tuple[int, ...], window: int) -> None:
    logits = logits_with(dead)
    increment = increment_of(logits, strength=0.6, window=window)
    alive = [e for e in range(6) if e not in dead]
    for e in alive:
        near = [i for i in alive if 0 < abs(i - e) <= window]
        mean = logits[..., near].mean(-1) - logits[..., alive].mean(-1) if near else torch.zeros(2, 9)
        torch.testing.assert_close(increment[..., e], -0.6 * mean.double(), rtol=0, atol=1e-12)
    assert bool(increment.isfinite().all())
    moved_up = increment_of(logits + 100.0, strength=0.6, window=window)  # the router's softmax sees no constant
    torch.testing.assert_close(moved_up, increment, rtol=0, atol=1e-11)


def test_a_window_over_all_experts_is_a_lower_temperature() -> None:
    logits = logits_with((2,))
    inhibited = (logits + increment_of(logits, strength=0.8, window=6)).softmax(-1)
    torch.testing.assert_close(inhibited, (logits * (1 + 0.8 / 4)).softmax(-1))


def test_tokens_are_inhibited_by_the_preceding_ones_of_their_document() -> None:
    logits = logits_with((4,))
    starts = torch.zeros(2, 9, dtype=torch.bool)
    starts[0, 4] = True
    increment = increment_of(logits, starts, strength=0.5, window=3, axis="tokens")
    alive = [0, 1, 2, 3, 5]
    for b in range(2):
        for t in range(9):
            first = 4 if b == 0 and t >= 4 else 0
            before = logits[b, max(first, t - 3) : t, alive]
            mean = before.mean(0) if len(before) else torch.zeros(5, dtype=torch.float64)
            torch.testing.assert_close(increment[b, t, alive], -0.5 * mean, rtol=0, atol=1e-12)


def test_gradients_pass_dead_slots() -> None:
    for axis in ("experts", "tokens"):
        logits = torch.randn(2, 9, 6, dtype=torch.float64, requires_grad=True)
        masked = logits.masked_fill(torch.arange(6) == 3, -math.inf)
        chosen = (masked + increment_of(masked, axis=axis)).softmax(-1)[..., 0].sum()
        (grad,) = torch.autograd.grad(chosen, logits)
        assert bool(grad.isfinite().all()) and not grad[..., 3].any() and grad[..., 1].any()


@torch.no_grad()
@pytest.mark.parametrize("axis", ["experts", "tokens"])
def test_vitals(axis: str) -> None:
    values = {}
    for strength in (0.1, 0.2):
        vitals = Vitals()
        arm = Arm("", {"moe": {"experts": 8}, "septin_router": {"strength": strength, "axis": axis}})
        arm.build()(sample_tokens(), vitals=vitals)
        values[strength] = vitals.per_layer()
    low, high = (values[s]["septin_router/inhibition"][0].item() for s in (0.1, 0.2))
    assert high == pytest.approx(2 * low, rel=1e-5) and low > 0.01
    assert 0 <= values[0.1]["septin_router/moved"][0] <= values[0.2]["septin_router/moved"][0] < 1


@torch.no_grad()
def test_strong_inhibition_along_tokens_spreads_a_repeated_token() -> None:
    """The same token again and again is not routed as if it stood alone."""
    tokens = torch.full((1, 12), 7)
    chosen = []
    for strength in (0.0, 1.0):
        body = Arm("", {"moe": {"top_k": 1}, "septin_router": {"strength": strength, "axis": "tokens"}}).build()
        seen: list[Tensor] = []
        moe: Any = body.mechanisms["moe"]
        moe.parts[0].router.register_forward_hook(lambda m, i, out, seen=seen: seen.append(out[0].probabilities))
        body(tokens)
        chosen.append(seen[0][0])
    plain, inhibited = chosen
    assert torch.allclose(plain[0], inhibited[0])  # nothing precedes the first
    assert torch.special.entr(inhibited[1:]).sum(-1).mean() > torch.special.entr(plain[1:]).sum(-1).mean() + 0.05


def test_off_and_alone() -> None:
    off = Arm("", {"moe": {}, "septin_router": {"strength": 0.0}}).build()
    assert not any(isinstance(module, RouterInhibition) for module in off.modules())
    assert torch.equal(off(sample_tokens())[0], Arm("", {"moe": {}}).build()(sample_tokens())[0])
    with pytest.raises(SocketError, match=r"refines 'moe', which is not there: use mechanism=moe\+septin_router"):
        Arm("", {"septin_router": {}}).build()
