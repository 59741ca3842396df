"""The oscillating activation: value, gradients, memory, precision, refusals."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import bouton.ops.oscillate.torch as implementation
from bouton.errors import KernelError
from bouton.ops.oscillate import oscillate, oscillate_reference


def arguments(shape: tuple[int, ...] = (3, 5, 7), dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    width = shape[-1:]
    tensors = [3 * torch.randn(shape, generator=generator, dtype=torch.float64)]
    tensors += [torch.randn(width, generator=generator, dtype=torch.float64) for _ in range(3)]
    return [t.to(dtype).requires_grad_() for t in tensors]


@pytest.mark.parametrize("rows", [1, 2, 1000])
def test_value_and_all_gradients_equal_the_reference_for_any_block(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(implementation, "_rows", lambda x: rows)
    x, omega, phi, baseline = arguments()
    upstream = torch.randn_like(x)
    expected = torch.autograd.grad(oscillate_reference(x, omega, phi, baseline), (x, omega, phi, baseline), upstream)
    y = oscillate(x, omega, phi, baseline)
    assert torch.allclose(y, oscillate_reference(x, omega, phi, baseline), atol=1e-14, rtol=0)
    for got, want in zip(torch.autograd.grad(y, (x, omega, phi, baseline), upstream), expected, strict=True):
        assert torch.allclose(got, want, atol=1e-12, rtol=0)


def test_gradcheck() -> None:
    assert torch.autograd.gradcheck(oscillate, arguments((4, 3)))


@pytest.mark.parametrize("trained", [(True, False, False), (False, True, False), (False, False, True)])
def test_each_gradient_alone(trained: tuple[bool, bool, bool]) -> None:
    x, omega, phi, _ = arguments()
    inputs = [t.detach().requires_grad_(flag) for t, flag in zip((x, omega, phi), trained, strict=True)]
    wanted = [t for t in inputs if t.requires_grad]
    got = torch.autograd.grad(oscillate(*inputs).sum(), wanted)
    want = torch.autograd.grad(oscillate_reference(*inputs).sum(), wanted)
    assert torch.allclose(got[0], want[0], atol=1e-12, rtol=0)


def test_keeps_the_input_alone_for_the_backward_pass() -> None:
    x, omega, phi, baseline = arguments((64, 32))
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        oscillate(x, omega, phi, baseline)
    assert sum(t.numel() for t in kept) <= x.numel() + 3 * omega.numel()
    assert any(t.data_ptr() == x.data_ptr() for t in kept)


def test_non_contiguous_input_and_upstream() -> None:
    x, omega, phi, baseline = arguments((5, 6))
    turned = x.detach().T.contiguous().T.requires_grad_()
    got = torch.autograd.grad(oscillate(turned, omega, phi, baseline).sum(), turned)[0]
    want = torch.autograd.grad(oscillate_reference(x, omega, phi, baseline).sum(), x)[0]
    assert torch.allclose(got, want, atol=1e-12, rtol=0)


def test_low_precision_computes_in_float32() -> None:
    x, omega, phi, baseline = (t.detach() for t in arguments())
    half = x.to(torch.bfloat16).requires_grad_()
    y = oscillate(half, omega.float(), phi.float(), baseline.float())
    exact = oscillate_reference(half.detach().double(), omega, phi, baseline)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, exact.to(torch.bfloat16)) or (y.double() - exact).abs().max() < 2**-8 * exact.abs().max()
    y.sum().backward()
    assert half.grad is not None and half.grad.dtype == torch.bfloat16


def test_float32_stays_within_one_rounding() -> None:
    x, omega, phi, baseline = (t.detach().float() for t in arguments((1000, 8)))
    exact = oscillate_reference(x.double(), omega.double(), phi.double(), baseline.double())
    assert (oscillate(x, omega, phi, baseline).double() - exact).abs().max() < 2e-6


def test_compiles_to_the_same_function() -> None:
    x, omega, phi, baseline = arguments((4, 3))
    compiled = torch.compile(oscillate, backend="aot_eager", fullgraph=True)
    y = compiled(x, omega, phi, baseline)
    assert torch.allclose(y, oscillate_reference(x, omega, phi, baseline), atol=1e-14, rtol=0)
    got = torch.autograd.grad(y.sum(), omega)[0]
    assert torch.allclose(got, torch.autograd.grad(oscillate(x, omega, phi, baseline).sum(), omega)[0], atol=1e-12)


def test_refuses_what_does_not_fit() -> None:
    x, omega, phi, baseline = arguments()
    with pytest.raises(KernelError, match=r"phi \(6,\) must be \(width,\)"):
        oscillate(x, omega, phi[:6])
    with pytest.raises(KernelError, match="floating-point"):
        oscillate(x.long(), omega, phi)
    with pytest.raises(KernelError, match="'oscillate' cannot run on backend 'triton'"):
        oscillate(x, omega, phi, baseline, backend="triton")
