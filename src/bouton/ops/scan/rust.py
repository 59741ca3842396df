"""The recurrences on the CPU by the compiled kernels of the wheel ``bouton-kernels`` (``kernels_rs/src/scan``).

float32 inside, token by token, vectorised over the channels; the result does not depend on the number of threads. Both
passes are opaque operators of ``torch.library``, so that ``torch.compile`` sees through them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bouton.ops import wheel

if TYPE_CHECKING:
    import numpy as np


def why_not() -> str | None:
    """Why the kernels cannot run on this machine; None if they can."""
    return wheel.why_not("scan")


def refuses(x: Tensor) -> str | None:
    """Why the kernels cannot execute a call with this input; None if they can."""
    if x.dtype == torch.float64:
        return "computes in float32, not in float64"
    return None


def _array(x: Tensor | None) -> np.ndarray[Any, Any] | None:
    return None if x is None else x.detach().contiguous().numpy()


@torch.library.custom_op("bouton::scan_rust", mutates_args=(), device_types="cpu")
def _forward(a: Tensor, x: Tensor, floor: Tensor | None, state: Tensor, starts: Tensor | None) -> tuple[Tensor, Tensor]:
    """y (B, T, N) and its last row."""
    arguments = (_array(each) for each in (x, a, state, starts, floor))
    y = torch.from_numpy(wheel.kernels().scan(*arguments, torch.get_num_threads()))
    return y, y[:, -1].clone()


@_forward.register_fake
def _(a: Tensor, x: Tensor, floor: Tensor | None, state: Tensor, starts: Tensor | None) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), state.new_empty(state.shape)


@torch.library.custom_op("bouton::scan_rust_backward", mutates_args=(), device_types="cpu")
def _backward(
    grad_y: Tensor,
    grad_last: Tensor,
    y: Tensor,
    a: Tensor,
    floor: Tensor | None,
    state: Tensor,
    starts: Tensor | None,
    need_a: bool,
    need_floor: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of a, x, floor and state; those that nobody needs are empty."""
    arguments = (_array(each) for each in (grad_y, grad_last, y, a, state, starts, floor))
    found = wheel.kernels().scan_backward(*arguments, need_a, need_floor, torch.get_num_threads())
    grad_x, grad_a, grad_state, grad_floor = found

    def reduced(grad: np.ndarray[Any, Any] | None, like: Tensor | None) -> Tensor:
        if grad is None or like is None:
            return y.new_empty(0)
        whole = torch.from_numpy(grad)
        return whole if whole.shape == like.shape else whole.double().sum_to_size(like.shape).float()

    return reduced(grad_a, a), torch.from_numpy(grad_x), reduced(grad_floor, floor), torch.from_numpy(grad_state)


@_backward.register_fake
def _(
    grad_y: Tensor,
    grad_last: Tensor,
    y: Tensor,
    a: Tensor,
    floor: Tensor | None,
    state: Tensor,
    starts: Tensor | None,
    need_a: bool,
    need_floor: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        a.new_empty(a.shape if need_a else 0),
        y.new_empty(y.shape),
        y.new_empty(floor.shape if need_floor and floor is not None else 0),
        state.new_empty(state.shape),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    a, _, floor, state, starts = inputs
    ctx.save_for_backward(output[0], a, floor, state, starts)


def _autograd(ctx: Any, grad_y: Tensor, grad_last: Tensor) -> tuple[Tensor | None, ...]:
    need_a, _, need_floor, _, _ = ctx.needs_input_grad
    a, x, floor, state = _backward(grad_y, grad_last, *ctx.saved_tensors, need_a, need_floor)
    return a if need_a else None, x, floor if need_floor else None, state, None


_forward.register_autograd(_autograd, setup_context=_setup_context)


def scan_rust(
    a: Tensor, x: Tensor, floor: Tensor | None, state: Tensor, starts: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See :func:`bouton.ops.scan.reference.scan_reference`; all float32, a and floor with axes whole or of size 1.

    Raises:
        ValueError: a shape that does not fit.
        ImportError: the wheel is not installed.
    """
    inputs = (a, x, floor, state)
    learns = torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in inputs)
    # Without gradients the dispatcher is not needed, and it is most of the time of a short call.
    execute = _forward if learns or torch.compiler.is_compiling() else _forward._init_fn
    results: tuple[Tensor, Tensor] = execute(a, x, floor, state, starts)
    return results
