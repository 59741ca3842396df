"""The oscillating activation on a GPU by one kernel forward and one backward; keeps x alone in between.

The gradients of omega, phi and baseline are sums over rows: every program leaves those of its own rows, which one
reduction adds up in a fixed order. Both passes are opaque operators of ``torch.library``. The kernels are imported at
their first use: whether Triton compiles or interprets them is settled then.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from bouton.ops.triton_runtime import interpreted

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def refuses(x: Tensor) -> str | None:
    """Why the kernels cannot execute a call with this input; None if they can."""
    if x.dtype not in DTYPES:
        return f"computes in float32: takes float32, bfloat16 or float16, not {str(x.dtype).removeprefix('torch.')}"
    return None


@cache
def _kernels() -> Any:
    from bouton.ops.oscillate import triton_kernels

    return triton_kernels


def _tiles(rows: int, width: int) -> tuple[tuple[int, int], dict[str, Any]]:
    """The grid, and what is chosen when a kernel is compiled: 8 numbers per thread, 16 bytes of bfloat16 in a row.

    A program walks down 8 tiles, so that the sums that it leaves are a 64th of its elements.
    """
    tile = {"BR": 8, "BC": 128, "STEPS": 2 if interpreted() else 8}
    grid = (-(-rows // (tile["BR"] * tile["STEPS"])), -(-width // tile["BC"]))
    return grid, {**tile, "num_warps": 4, "enable_fp_fusion": True}


def launch_forward(x: Tensor, omega: Tensor, phi: Tensor, baseline: Tensor | None) -> Tensor:
    """y, for x (rows, width), contiguous."""
    rows, width = x.shape
    y = torch.empty_like(x)
    grid, tile = _tiles(rows, width)
    offset = phi if baseline is None else baseline  # never read without one
    _kernels().forward[grid](
        x,
        omega.contiguous(),
        phi.contiguous(),
        offset.contiguous(),
        y,
        rows,
        width,
        OFFSET=baseline is not None,
        **tile,
    )
    return y


def launch_backward(
    y_bar: Tensor, x: Tensor, omega: Tensor, phi: Tensor, of_input: bool, of_constants: bool
) -> tuple[Tensor, Tensor]:
    """The gradient of x, and those of omega, phi and baseline, (3, width) float32; empty unless asked for."""
    rows, width = x.shape
    grid, tile = _tiles(rows, width)
    x_bar = torch.empty_like(x) if of_input else x.new_empty(0)
    sums = x.new_empty((3, grid[0] if of_constants else 0, width), dtype=torch.float32)
    _kernels().backward[grid](
        x, omega.contiguous(), phi.contiguous(), y_bar.contiguous(), x_bar, sums, rows, width,
        INPUT=of_input, CONSTANTS=of_constants, **tile,
    )  # fmt: skip
    return x_bar, sums.sum(dim=1)


_forward = torch.library.custom_op("bouton::oscillate_triton", launch_forward, mutates_args=())
_backward = torch.library.custom_op("bouton::oscillate_triton_backward", launch_backward, mutates_args=())


@_forward.register_fake
def _(x: Tensor, omega: Tensor, phi: Tensor, baseline: Tensor | None) -> Tensor:
    return x.new_empty(x.shape)


@_backward.register_fake
def _(
    y_bar: Tensor, x: Tensor, omega: Tensor, phi: Tensor, of_input: bool, of_constants: bool
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape if of_input else 0), x.new_empty((3, x.shape[1]), dtype=torch.float32)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, omega, phi, baseline = inputs
    ctx.save_for_backward(x, omega, phi)
    ctx.dtype_of_baseline = None if baseline is None else baseline.dtype


def _autograd(ctx: Any, y_bar: Tensor) -> tuple[Tensor | None, ...]:
    x, omega, phi = ctx.saved_tensors
    need_x, *need = ctx.needs_input_grad
    x_bar, sums = _backward(y_bar.to(x.dtype), x, omega, phi, need_x, any(need))
    dtypes = (omega.dtype, phi.dtype, ctx.dtype_of_baseline)
    constants = (
        sums[i].to(dtype) if needed else None for i, (dtype, needed) in enumerate(zip(dtypes, need, strict=True))
    )
    return x_bar if need_x else None, *constants


_forward.register_autograd(_autograd, setup_context=_setup_context)


def oscillate_triton(x: Tensor, omega: Tensor, phi: Tensor, baseline: Tensor | None) -> Tensor:
    """See :func:`bouton.ops.oscillate.oscillate`; x has elements.

    Raises:
        ValueError: an input that the kernels cannot take.
    """
    if (reason := refuses(x)) is not None:
        raise ValueError(f"the triton backend of oscillate {reason}")
    flat = x.reshape(-1, x.shape[-1]).contiguous()
    y: Tensor = _forward(flat, omega, phi, baseline)
    return y.view(x.shape)
