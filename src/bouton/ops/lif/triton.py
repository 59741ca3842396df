"""The neurons on a GPU by Triton kernels: x in float32, bfloat16 or float16, float32 inside.

Neurons by themselves take one kernel forward and one backward (:mod:`.triton_kernels`); those that hear each other are
in :mod:`.triton_recurrent`. Nothing here waits for the device. The gradients of beta, theta and gain are left per
sequence and then added up, in an order that is always the same. Passes are opaque operators of ``torch.library``. The
kernels are imported at their first use: whether Triton compiles or interprets them is settled then.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bouton.ops.lif import triton_recurrent
from bouton.ops.triton_runtime import interpreted

if TYPE_CHECKING:
    from bouton.ops.lif import LIFOptions

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def refuses(x: Tensor) -> str | None:
    """Why the kernels cannot execute a call with this input; None if they can."""
    if x.dtype not in DTYPES:
        return f"computes in float32: takes float32, bfloat16 or float16, not {str(x.dtype).removeprefix('torch.')}"
    return None


@cache
def _kernels() -> Any:
    from bouton.ops.lif import triton_kernels

    return triton_kernels


def chunk() -> int:
    """Tokens from one kept membrane potential to the next."""
    return 4 if interpreted() else 16


def _options(gain: Tensor | None, starts: Tensor | None, reset: str) -> dict[str, Any]:
    """What is chosen when a kernel is compiled. A warp per program: neurons are few, and each is one thread's."""
    return {
        "RESET": reset,
        "GAIN": gain is not None,
        "STARTS": starts is not None,
        "BH": 32,
        "K": chunk(),
        "num_warps": 1,
        "enable_fp_fusion": False,
    }


def _grid(x: Tensor) -> tuple[int, int]:
    return -(-x.shape[2] // 32), x.shape[0]


def _bytes(starts: Tensor | None, x: Tensor) -> Tensor:
    """``starts`` as the kernels read it; in its place anything, which is never read."""
    return x if starts is None else starts.contiguous().view(torch.uint8)


def launch_forward(
    x: Tensor,
    beta: Tensor,
    theta: Tensor,
    gain: Tensor | None,
    u0: Tensor,
    s0: Tensor,
    starts: Tensor | None,
    reset: str,
    surrogate: str,
    alpha: float,
    detach_reset: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Spikes, the last u, and for the backward pass, which the surrogate is for, the u before each chunk."""
    x = x.contiguous()
    batch, tokens, width = x.shape
    spikes, last = torch.empty_like(x), u0.new_empty(batch, width)
    kept = u0.new_empty(batch, -(-tokens // chunk()) if save else 0, width)
    _kernels().forward[_grid(x)](
        x, beta.contiguous(), theta.contiguous(), (beta if gain is None else gain).contiguous(), u0.contiguous(),
        s0.contiguous(), _bytes(starts, x), spikes, last, kept, tokens, width,
        SAVE=save, **_options(gain, starts, reset),
    )  # fmt: skip
    return spikes, last, kept


def launch_backward(
    spikes_bar: Tensor,
    last_bar: Tensor,
    kept: Tensor,
    x: Tensor,
    beta: Tensor,
    theta: Tensor,
    gain: Tensor | None,
    s0: Tensor,
    starts: Tensor | None,
    reset: str,
    surrogate: str,
    alpha: float,
    detach_reset: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, u0 and s0, and those of beta, theta and gain, (3, H); the last is undefined without a gain."""
    x = x.contiguous()
    batch, tokens, width = x.shape
    x_bar, u0_bar, s0_bar = torch.empty_like(x), torch.empty_like(last_bar), torch.empty_like(last_bar)
    sums = kept.new_empty(3 if gain is not None else 2, batch, width)
    _kernels().backward[_grid(x)](
        x, beta.contiguous(), theta.contiguous(), (beta if gain is None else gain).contiguous(), s0.contiguous(),
        _bytes(starts, x), kept, spikes_bar.contiguous(), last_bar.contiguous(), x_bar, u0_bar, s0_bar, sums, alpha,
        tokens, width, SURROGATE=surrogate, DETACH=detach_reset, **_options(gain, starts, reset),
    )  # fmt: skip
    return x_bar, u0_bar, s0_bar, sums.sum(dim=1)


_forward = torch.library.custom_op("bouton::lif_triton", launch_forward, mutates_args=())
_backward = torch.library.custom_op("bouton::lif_triton_backward", launch_backward, mutates_args=())


@_forward.register_fake
def _(
    x: Tensor,
    beta: Tensor,
    theta: Tensor,
    gain: Tensor | None,
    u0: Tensor,
    s0: Tensor,
    starts: Tensor | None,
    reset: str,
    surrogate: str,
    alpha: float,
    detach_reset: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, tokens, width = x.shape
    kept = u0.new_empty(batch, -(-tokens // chunk()) if save else 0, width)
    return x.new_empty(x.shape), u0.new_empty(u0.shape), kept


@_backward.register_fake
def _(
    spikes_bar: Tensor,
    last_bar: Tensor,
    kept: Tensor,
    x: Tensor,
    beta: Tensor,
    theta: Tensor,
    gain: Tensor | None,
    s0: Tensor,
    starts: Tensor | None,
    reset: str,
    surrogate: str,
    alpha: float,
    detach_reset: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sums = kept.new_empty(3 if gain is not None else 2, x.shape[2])
    return x.new_empty(x.shape), last_bar.new_empty(last_bar.shape), last_bar.new_empty(last_bar.shape), sums


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, beta, theta, gain, _, s0, starts, *choices, _ = inputs
    ctx.save_for_backward(output[2], x, beta, theta, gain, s0, starts)
    ctx.choices = choices


def _autograd(ctx: Any, spikes_bar: Tensor, last_bar: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    x_bar, u0_bar, s0_bar, sums = _backward(spikes_bar, last_bar, *saved, *ctx.choices)
    grads = (x_bar, sums[0], sums[1], sums[2] if saved[4] is not None else None, u0_bar, s0_bar)
    wanted = zip(ctx.needs_input_grad, grads, strict=False)
    return *(grad if needed else None for needed, grad in wanted), *[None] * 6


_forward.register_autograd(_autograd, setup_context=_setup_context)


def lif_triton(
    x: Tensor,
    beta: Tensor,
    theta: Tensor,
    gain: Tensor | None,
    w_rec: Tensor | None,
    u0: Tensor,
    s0: Tensor,
    starts: Tensor | None,
    options: LIFOptions,
) -> tuple[Tensor, Tensor]:
    """See :func:`bouton.ops.lif.reference.lif_reference`; x of any of :data:`DTYPES` and T >= 1, the others float32.

    Raises:
        ValueError: an input that the kernels cannot take.
    """
    if (reason := refuses(x)) is not None:
        raise ValueError(f"the triton backend of lif {reason}")
    before = options.reset == "subtract" and options.reset_order == "before_decay"
    reset = "subtract_before_decay" if before else options.reset
    choices = (reset, options.surrogate, options.alpha, options.detach_reset)
    if w_rec is not None:
        return triton_recurrent.rlif_triton(x, beta, theta, gain, w_rec, u0, s0, starts, *choices)
    tensors = (x, beta, theta, gain, u0, s0)
    save = torch.is_grad_enabled() and any(y is not None and y.requires_grad for y in tensors)
    spikes, last, _ = _forward(*tensors, starts, *choices, save)
    return spikes, last
