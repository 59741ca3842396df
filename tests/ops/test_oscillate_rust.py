"""The compiled form of the oscillating activation against the definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bouton.errors import KernelError
from bouton.ops.oscillate import oscillate, oscillate_reference, rust

pytestmark = pytest.mark.skipif(rust.why_not() is not None, reason=f"{rust.why_not()}")


def arguments(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    constants = [torch.randn(shape[-1], generator=g) for _ in range(3)]
    return [(3 * torch.randn(shape, generator=g)).to(dtype), *constants]


def errors(inputs: list[Tensor | None], dtype: torch.dtype) -> list[float]:
    """Of y and every gradient, relative to the largest number of each."""
    leaves = [None if x is None else x.detach().requires_grad_() for x in inputs]
    exact = [None if x is None else x.detach().double().requires_grad_() for x in inputs]
    y, wanted = oscillate(*leaves, backend="rust"), oscillate_reference(*exact)  # type: ignore[arg-type]
    assert y.dtype == dtype and y.shape == wanted.shape
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    y.backward(upstream)
    wanted.backward(upstream.double())
    found = [(y, wanted)] + [(a.grad, b.grad) for a, b in zip(leaves, exact, strict=True) if a is not None]
    return [((a.double() - b).abs().max() / b.abs().max()).item() for a, b in found]


@pytest.mark.parametrize("shape", [(1, 1), (3, 5, 7), (200, 130), (40,)])
@pytest.mark.parametrize("baseline", [True, False])
def test_value_and_gradients_equal_the_definition(shape: tuple[int, ...], baseline: bool) -> None:
    inputs: list[Tensor | None] = [*arguments(shape)]
    assert max(errors(inputs if baseline else [*inputs[:3], None], torch.float32)) < 2e-6


def test_half_precision_is_computed_in_float32() -> None:
    assert max(errors([*arguments((50, 33), torch.bfloat16)], torch.bfloat16)) < 2**-8


def test_inputs_that_are_not_contiguous() -> None:
    x, *constants = arguments((6, 5, 4))
    assert max(errors([x.transpose(0, 1), *constants], torch.float32)) < 2e-6


def test_keeps_the_input_alone() -> None:
    x, *constants = (t.requires_grad_() for t in arguments((64, 32)))
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        oscillate(x, *constants, backend="rust")
    assert sum(t.numel() for t in kept) == x.numel() + 2 * 32


def test_compiles_to_the_same_function() -> None:
    x, *constants = (t.requires_grad_() for t in arguments((8, 6)))
    compiled = torch.compile(lambda *t: oscillate(*t, backend="rust"), backend="aot_eager", fullgraph=True)
    y, plain = compiled(x, *constants), oscillate(x, *constants, backend="rust")
    assert torch.equal(y, plain)
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.autograd.grad(plain.sum(), x)[0])


def test_what_it_cannot_do() -> None:
    x, *constants = arguments((4, 3))
    with pytest.raises(KernelError, match="computes in float32, not in float64"):
        oscillate(x.double(), *constants, backend="rust")
    assert oscillate(x[:0], *constants, backend="rust").shape == (0, 3)
