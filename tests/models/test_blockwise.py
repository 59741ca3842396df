from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from bouton.models import Transformer, TransformerConfig, blockwise, initialize
from bouton.models.attention import DotProductCore
from bouton.models.context import Context

T = 450
# rows: documents that begin with it, one goes over the row's start, a single one, many short ones at the end
STARTS = {0: (0, 1, 200, 430), 1: (37, 300), 2: (), 3: (0, 390, 391, 400, 410, 449)}


def starts(rows: int = 4) -> torch.Tensor:
    found = torch.zeros(rows, T, dtype=torch.bool)
    for row in range(rows):
        found[row, list(STARTS[row])] = True
    return found


def context(begins: torch.Tensor | None) -> Context:
    positions = torch.arange(T)[None]
    segments = None if begins is None else begins.long().cumsum(1)
    return Context(positions, begins, segments, segments)


def inputs(dtype: torch.dtype, heads: int = 4, kv_heads: int = 2) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(3)
    shapes = [(4, heads, T, 8), (4, kv_heads, T, 8), (4, kv_heads, T, 8)]
    return [torch.randn(shape, generator=g).to(dtype).requires_grad_() for shape in shapes]


def dense(x: list[torch.Tensor], ctx: Context, window: int | None) -> torch.Tensor:
    return F.scaled_dot_product_attention(*x, attn_mask=ctx.mask(window, T), enable_gqa=True)


@pytest.mark.parametrize("window", [None, 1, 30, 200, 260, 449])
@pytest.mark.parametrize("documents", [True, False])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_equals_the_dense_mask_forward_and_backward(window, documents, dtype, limit):
    ctx = context(starts() if documents else None)
    x = inputs(dtype)
    if window is None and not documents:
        assert ctx.blocks(window, T, x[0]) is None  # torch's causal kernel
        return
    blocks = ctx.blocks(window, T, x[0])
    assert blocks is not None and len(blocks) > 1
    out, expected = blockwise.attention(*x, blocks), dense([y.double() for y in x], ctx, window)
    bar = torch.randn(out.shape, generator=torch.Generator().manual_seed(4)).double()
    grads, exact = (torch.autograd.grad((y * bar).sum(), x) for y in (out.double(), expected))
    for found, wanted in zip((out, *grads), (expected, *exact), strict=True):
        assert found.shape == wanted.shape
        assert (found.double() - wanted.double()).abs().max() <= limit * max(1.0, wanted.abs().max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pairs_that_no_query_sees_are_not_computed(dtype, monkeypatch):
    pairs = []
    kernel = F.scaled_dot_product_attention

    def counting(q, k, v, **options):
        pairs.append(q.shape[0] * q.shape[2] * k.shape[2])
        return kernel(q, k, v, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counting)
    begins = torch.zeros(2, 2048, dtype=torch.bool)
    begins[:, ::200] = True
    segments = begins.long().cumsum(1)
    core, x = DotProductCore(1, 8), torch.zeros(2, 1, 2048, 8, dtype=dtype)
    core(x, x, x, Context(torch.arange(2048)[None], begins, segments, segments), None, bias=None, window=None)
    documents = sum(pairs)
    pairs.clear()
    core(x, x, x, Context(torch.arange(2048)[None]), None, bias=None, window=100)
    windows = sum(pairs)
    whole = 2 * 2048**2
    assert documents < (0.11 if dtype == torch.float32 else 0.25) * whole
    assert windows < 0.25 * whole


def test_the_plan_is_made_once_for_all_layers():
    ctx, x = context(starts()), inputs(torch.float32)
    assert ctx.blocks(None, T, x[0]) is ctx.blocks(None, T, x[0])


def test_short_rows_take_one_call():
    begins = torch.zeros(64, blockwise.QUERIES, dtype=torch.bool)
    begins[:, 7] = True
    assert blockwise.plan(begins, None, torch.float32) is None


def test_mixed_precision_is_planned_for_half_precision():
    ctx, x = context(starts()), inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        blocks = ctx.blocks(None, T, x[0])
        out = blockwise.attention(*x, blocks)
    assert [block.length for block in blocks] == [256, T - 256] * 4
    exact = dense(x, ctx, None)
    assert (out.double() - exact).abs().max() < 3e-2 * exact.abs().max()


@pytest.mark.parametrize("options", [{}, {"window": 40}], ids=["full", "window"])
def test_compiles_with_documents(options):
    config = {"vocab_size": 31, "num_layers": 1, "hidden_size": 16, "num_heads": 2, "max_seq_len": T}
    model = initialize(Transformer(TransformerConfig(**config, **options)), 0)
    ids = torch.randint(31, (4, T), generator=torch.Generator().manual_seed(5))
    begins = starts()
    eager = model(ids, starts=begins)[0]
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(ids, starts=begins)[0]
    torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-5)
