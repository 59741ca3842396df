"""2-simplicial attention: values, gradients and state against the loops; documents, any split, shapes refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bouton.errors import KernelError
from bouton.ops.simplicial_attention import (
    simplicial_attention,
    simplicial_attention_reference,
    simplicial_weights,
)

WINDOWS = [(1, 1), (4, 2), (2, 5), (3, 1), (1, 6), (20, 4), (5, 30)]
NAMES = ("q", "k1", "v1", "k2", "v2", "bias1", "bias2")


def inputs(w1: int, w2: int, tokens: int = 9, bias: bool = False, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    x: dict[str, Any] = {"q": normal(2, 4, tokens, 6)}
    x |= {name: normal(2, 2, tokens, 6) for name in ("k1", "v1", "k2", "v2")}
    if bias:
        x |= {"bias1": normal(1, 4, tokens, w1), "bias2": normal(2, 1, tokens, w2)}
    return x


def borders(tokens: int = 9) -> Tensor:
    starts = torch.zeros(2, tokens, dtype=torch.bool)
    starts[0, 4] = starts[0, 5] = starts[1, 0] = starts[1, 7] = True
    return starts


@pytest.mark.parametrize(("w1", "w2"), WINDOWS)
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_equals_the_reference(w1: int, w2: int, documents: bool, bias: bool) -> None:
    x = inputs(w1, w2, bias=bias)
    starts = borders() if documents else None
    out, state = simplicial_attention(**x, w1=w1, w2=w2, starts=starts)
    expected, remembered = simplicial_attention_reference(**x, w1=w1, w2=w2, starts=starts)
    assert torch.allclose(out, expected, atol=1e-12, rtol=0)
    assert set(state) == set(remembered)
    for name, kept in remembered.items():
        assert torch.equal(state[name], kept), name
    upstream = torch.randn_like(out)
    names = [name for name in NAMES if name in x]
    got = torch.autograd.grad(out, [x[name] for name in names], upstream)
    want = torch.autograd.grad(expected, [x[name] for name in names], upstream)
    for name, a, b in zip(names, got, want, strict=True):
        assert torch.allclose(a, b, atol=1e-12, rtol=0), name


def test_gradients_pass_gradcheck_through_output_and_state() -> None:
    x = inputs(3, 2, tokens=4, bias=True)

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        out, state = simplicial_attention(**dict(zip(NAMES, tensors, strict=True)), w1=3, w2=2)
        return out, *(state[name] for name in ("keys1", "values1", "keys2", "values2"))

    assert torch.autograd.gradcheck(run, [x[name] for name in NAMES])


@pytest.mark.parametrize(("w1", "w2"), WINDOWS)
@pytest.mark.parametrize("sizes", [[1] * 9, [4, 1, 4], [8, 1]])
def test_any_split_is_equal(w1: int, w2: int, sizes: list[int]) -> None:
    x, starts = inputs(w1, w2, bias=True), borders()
    whole, after = simplicial_attention(**x, w1=w1, w2=w2, starts=starts)
    state, parts, at = None, [], 0
    for size in sizes:
        piece = slice(at, at + size)
        chunk = {name: tensor[:, :, piece] for name, tensor in x.items()}
        part, state = simplicial_attention(**chunk, w1=w1, w2=w2, starts=starts[:, piece], state=state)
        parts.append(part)
        at += size
    assert torch.allclose(torch.cat(parts, 2), whole, atol=1e-13, rtol=0)
    assert state is not None
    for name, kept in after.items():
        assert torch.equal(state[name], kept), name


def test_no_query_sees_beyond_its_windows_or_the_future() -> None:
    x = inputs(3, 2, tokens=9)
    out, _ = simplicial_attention(**x, w1=3, w2=2)
    for t in range(9):
        first, second = torch.autograd.grad(out[:, :, t].sum(), (x["v1"], x["v2"]), retain_graph=True)
        for window, grad in ((3, first), (2, second)):
            reached = (grad != 0).any(dim=(0, 1, 3)).nonzero().flatten().tolist()
            assert reached == list(range(max(0, t - window + 1), t + 1))


def test_the_form_is_symmetric_in_both_keys() -> None:
    x = inputs(4, 4)
    swapped = {"q": x["q"], "k1": x["k2"], "v1": x["v2"], "k2": x["k1"], "v2": x["v1"]}
    a, b = (simplicial_attention(**given, w1=4, w2=4)[0] for given in (x, swapped))
    assert torch.allclose(a, b, atol=1e-13, rtol=0)


def test_the_second_window_of_one_token_is_gated_attention() -> None:
    """With w2 = 1 the second key gates the query, the second value the output."""
    x = inputs(30, 1)
    out, _ = simplicial_attention(**x, w1=30, w2=1)
    k2, v2 = (x[name].repeat_interleave(2, dim=1) for name in ("k2", "v2"))
    gated = torch.nn.functional.scaled_dot_product_attention(
        x["q"] * k2, x["k1"], x["v1"], is_causal=True, enable_gqa=True
    )
    assert torch.allclose(out, gated * v2, atol=1e-12, rtol=0)


def test_weights_sum_to_one_over_all_pairs() -> None:
    x = inputs(4, 3)
    weights = simplicial_weights(x["q"], x["k1"], x["k2"], 4, 3, starts=borders())
    assert weights.shape == (2, 4, 9, 3, 4)
    assert torch.allclose(weights.sum((-2, -1)), torch.ones(2, 4, 9, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_low_precision_is_computed_in_float32(dtype: torch.dtype, autocast: bool) -> None:
    x = inputs(4, 3, dtype=dtype)
    exact, _ = simplicial_attention(**{name: tensor.double() for name, tensor in x.items()}, w1=4, w2=3)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out, _ = simplicial_attention(**x, w1=4, w2=3)
    assert out.dtype == dtype
    assert torch.allclose(out.double(), exact, atol=1e-6 if dtype == torch.float32 else 0.02, rtol=0)


def test_extreme_logits_stay_finite() -> None:
    x = inputs(4, 3)
    out, _ = simplicial_attention(**{**x, "q": x["q"] * 1e4}, w1=4, w2=3)
    assert out.isfinite().all()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"w1": 0}, "w1 = 0"),
        ({"w2": -1}, "w2 = -1"),
        ({"k2": torch.zeros(2, 3, 9, 6)}, "k2"),
        ({"v1": torch.zeros(2, 2, 8, 6)}, "v1"),
        ({"q": torch.zeros(2, 4, 6)}, "q"),
        ({"starts": torch.zeros(2, 3, dtype=torch.bool)}, "starts"),
        ({"bias1": torch.zeros(1, 4, 9, 3)}, "bias1"),
        ({"bias1": torch.zeros(3, 4, 9, 4)}, "bias1"),
        ({"bias2": torch.zeros(2, 3, 9, 2)}, "bias2"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change: dict[str, Any], word: str) -> None:
    with pytest.raises(KernelError, match=word):
        simplicial_attention(**{**inputs(4, 2), "w1": 4, "w2": 2, **change})
