"""Plain causal attention on a GPU by Triton kernels like those of fatigue attention: what the fatigue itself costs."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

from bouton.ops.fatigue_attention.triton import DTYPES, MOST_DEPTH, Tiling, padded, precision
from bouton.ops.triton_runtime import interpreted


@cache
def _kernels() -> tuple[Any, Any]:
    from bouton.ops.fatigue_attention import triton_backward, triton_plain

    return triton_plain, triton_backward


def _options(depth: int, dtype: torch.dtype, backward: bool = False) -> tuple[Tiling, dict[str, Any]]:
    """Tiles that do not spill registers, and what is chosen when a kernel is compiled."""
    if interpreted():
        tiles = Tiling(16, 32, 4, 1)
    elif dtype == torch.float32:
        tiles = Tiling(32, 32, 4, 1)
    elif padded(depth) > 128:
        tiles = Tiling(16, 32, 4, 1) if backward else Tiling(64, 32, 8, 1)
    elif padded(depth) > 64 and backward:
        tiles = Tiling(64, 64, 8, 2 if padded(depth) == depth else 1)
    else:
        tiles = Tiling(64, 64, 4, 2)
    return tiles, {
        "D": depth,
        "BD": padded(depth),
        "BM": tiles.queries,
        "BN": tiles.keys,
        "PRECISION": precision(dtype),
        "num_warps": tiles.warps,
        "num_stages": tiles.stages,
    }


def launch_forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The output, and the sum of exponentials (B, H, Tq)."""
    batch, heads, tq, depth = q.shape
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    out, total = torch.empty_like(q), q.new_empty((batch, heads, tq), dtype=torch.float32)
    tiles, options = _options(depth, q.dtype)
    scale = math.log2(math.e) / math.sqrt(depth)
    _kernels()[0].plain_forward[(-(-tq // tiles.queries), batch * heads)](
        q, k, v, out, total, tq, k.shape[2], scale, **options
    )
    return out, total


_forward = torch.library.custom_op("bouton::plain_attention_triton", launch_forward, mutates_args=())


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=torch.float32)


def launch_backward(
    out_bar: Tensor, out: Tensor, total: Tensor, q: Tensor, k: Tensor, v: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k, v."""
    batch, heads, tq, depth = q.shape
    tk = k.shape[2]
    q, k, v, out_bar = q.contiguous(), k.contiguous(), v.contiguous(), out_bar.to(q.dtype).contiguous()
    share_bar, shift = torch.empty_like(out_bar), torch.empty_like(total)
    rows = batch * heads * tq
    plain, backward = _kernels()
    backward.slopes[(-(-rows // 32),)](
        out, out_bar, total, share_bar, shift, rows, D=depth, BD=padded(depth), BM=32, num_warps=4
    )
    q_bar, k_bar, v_bar = q.new_zeros(q.shape, dtype=torch.float32), torch.empty_like(k), torch.empty_like(v)
    tiles, options = _options(depth, q.dtype, backward=True)
    scale = math.log2(math.e) / math.sqrt(depth)
    plain.plain_backward[(-(-tk // tiles.keys), batch * heads)](
        q, k, v, share_bar, shift, q_bar, k_bar, v_bar, tq, tk, scale, **options
    )
    return q_bar.to(q.dtype), k_bar, v_bar


_backward = torch.library.custom_op("bouton::plain_attention_triton_backward", launch_backward, mutates_args=())


@_backward.register_fake
def _(out_bar: Tensor, out: Tensor, total: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*output, *inputs)


def _autograd(ctx: Any, out_bar: Tensor, _: Tensor | None) -> tuple[Tensor, ...]:
    gradients: tuple[Tensor, ...] = _backward(out_bar, *ctx.saved_tensors)
    return gradients


_forward.register_autograd(_autograd, setup_context=_setup_context)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of q (B, H, Tq, D) over k, v (B, H, Tk, D); the queries are the last Tq positions.

    Raises:
        ValueError: shapes or dtypes that the kernels cannot take.
    """
    if q.dtype not in DTYPES or k.dtype != q.dtype or v.dtype != q.dtype or q.shape[-1] > MOST_DEPTH:
        raise ValueError(
            f"plain attention takes q, k, v all float32 or all bfloat16 of at most {MOST_DEPTH} dimensions,"
            f" not {q.dtype}, {k.dtype}, {v.dtype} of {q.shape[-1]}"
        )
    if k.shape != v.shape or k.shape[:2] != q.shape[:2] or k.shape[3] != q.shape[3] or k.shape[2] < q.shape[2]:
        raise ValueError(f"q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} do not fit together")
    out: Tensor = _forward(q, k, v)[0]
    return out
