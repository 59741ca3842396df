"""Lateral inhibition: value and gradient against the loop, documents, any split exactly, long sequences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bouton.errors import KernelError
from bouton.ops.lateral_inhibition import lateral_inhibition, lateral_inhibition_reference

WINDOWS = [1, 2, 3, 4, 5, 7, 8, 30]


def sequence(tokens: int = 21, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, tokens, 4, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.rand(2, tokens, generator=generator) < 0.2


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("documents", [False, True])
def test_equals_the_reference(window: int, documents: bool) -> None:
    x, starts = sequence()
    x.requires_grad_()
    y, state = lateral_inhibition(x, 0.3, window, starts=starts if documents else None)
    expected, remembered = lateral_inhibition_reference(x, 0.3, window, starts if documents else None)
    assert torch.allclose(y, expected, atol=1e-13, rtol=0)
    upstream = torch.randn_like(x)
    got, want = torch.autograd.grad(y, x, upstream)[0], torch.autograd.grad(expected, x, upstream)[0]
    assert torch.allclose(got, want, atol=1e-13, rtol=0)
    for b, kept in enumerate(remembered):
        n = kept.shape[1]
        assert state["valid"][b].tolist() == [False] * (window - n) + [True] * n
        assert torch.equal(state["keys"][b, :, window - n :], kept)
        assert not state["keys"][b, :, : window - n].any()


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [[1] * 21, [5, 1, 15], [20, 1]])
def test_any_split_gives_the_same_bits(window: int, dtype: torch.dtype, sizes: list[int]) -> None:
    x, starts = sequence(dtype=dtype)
    whole, after = lateral_inhibition(x, 0.3, window, starts=starts)
    state, parts = None, []
    for chunk, begin in zip(x.split(sizes, dim=2), starts.split(sizes, dim=1), strict=True):
        part, state = lateral_inhibition(chunk, 0.3, window, starts=begin, state=state)
        parts.append(part)
    assert torch.equal(torch.cat(parts, dim=2), whole)
    assert state is not None and all(torch.equal(state[name], after[name]) for name in after)


def test_a_document_is_alone() -> None:
    x, _ = sequence()
    starts = torch.zeros(2, 21, dtype=torch.bool)
    starts[:, 9] = True
    y, _ = lateral_inhibition(x, 0.3, 4, starts=starts)
    alone, _ = lateral_inhibition(x[:, :, 9:], 0.3, 4)
    assert torch.equal(y[:, :, 9:], alone)
    assert torch.equal(y[:, :, 9], x[:, :, 9])


def test_a_chunk_without_starts_goes_on_with_the_document() -> None:
    x, _ = sequence()
    whole, _ = lateral_inhibition(x, 0.3, 4)
    _, state = lateral_inhibition(x[:, :, :9], 0.3, 4)
    rest, _ = lateral_inhibition(x[:, :, 9:], 0.3, 4, state=state)
    assert torch.equal(rest, whole[:, :, 9:])


def test_causal() -> None:
    x, starts = sequence()
    changed = x.clone()
    changed[:, :, 12:] += 1
    before, after = (lateral_inhibition(v, 0.3, 4, starts=starts)[0] for v in (x, changed))
    assert torch.equal(before[:, :, :12], after[:, :, :12])


def test_float32_does_not_lose_precision_over_a_long_sequence() -> None:
    x = 1000 + torch.randn(1, 1, 20000, 1, generator=torch.Generator().manual_seed(0))
    y, _ = lateral_inhibition(x, 1.0, 4)
    exact, _ = lateral_inhibition(x.double(), 1.0, 4)
    error = (y.double() - exact).abs()[..., 4:, :]
    assert error[:, :, -1000:].max() <= 2 * error[:, :, :1000].max() + 1e-12
    assert error.max() < 5e-4


def test_refuses_what_does_not_fit() -> None:
    x, starts = sequence()
    with pytest.raises(KernelError, match="window = 0 must be at least 1"):
        lateral_inhibition(x, 0.3, 0)
    with pytest.raises(KernelError, match=r"starts \(2, 5\) must be \(B, T\) = \(2, 21\)"):
        lateral_inhibition(x, 0.3, 4, starts=starts[:, :5])
    with pytest.raises(KernelError, match=r"must be \(B, H, T, D\)"):
        lateral_inhibition(x[0], 0.3, 4)
    _, state = lateral_inhibition(x, 0.3, 4)
    with pytest.raises(KernelError, match="state"):
        lateral_inhibition(x, 0.3, 5, state=state)
