"""The oscillating activation on the CPU by the compiled kernels of the wheel ``bouton-kernels``
(``kernels_rs/src/oscillate``).

float32 inside; each pass reads x once and computes sine, cosine and tanh anew in the same loop: x alone is kept. The
result does not depend on the number of threads. Both passes are opaque operators of ``torch.library``.
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
    return wheel.why_not("oscillate_backward")


def refuses(x: Tensor) -> str | None:
    """Why the kernels cannot execute a call with this input; None if they can."""
    if x.dtype == torch.float64:
        return "computes in float32, not in float64"
    return None


def _array(x: Tensor) -> np.ndarray[Any, Any]:
    return x.detach().float().contiguous().numpy()


def _call(x: Tensor, omega: Tensor, phi: Tensor, baseline: Tensor | None) -> dict[str, Any]:
    constants = {"omega": _array(omega), "phi": _array(phi), "baseline": None if baseline is None else _array(baseline)}
    return {"x": _array(x), **constants}


@torch.library.custom_op("bouton::oscillate_rust", mutates_args=(), device_types="cpu")
def _forward(x: Tensor, omega: Tensor, phi: Tensor, baseline: Tensor | None) -> Tensor:
    """x (rows, width) -> y, in the dtype of x."""
    y = torch.empty(x.shape)
    wheel.kernels().oscillate(_call(x, omega, phi, baseline), y.numpy(), torch.get_num_threads())
    return y.to(x.dtype)


@_forward.register_fake
def _(x: Tensor, omega: Tensor, phi: Tensor, baseline: Tensor | None) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("bouton::oscillate_rust_backward", mutates_args=(), device_types="cpu")
def _backward(y_bar: Tensor, x: Tensor, omega: Tensor, phi: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradient of x in its dtype, and those of omega, phi and baseline (width,) in float32."""
    shapes = {"x": x.shape, "omega": omega.shape, "phi": omega.shape, "baseline": omega.shape}
    room = {name: torch.empty(shape) for name, shape in shapes.items()}
    arrays = {name: y.numpy() for name, y in room.items()}
    wheel.kernels().oscillate_backward(_call(x, omega, phi, None), _array(y_bar), arrays, torch.get_num_threads())
    return room["x"].to(x.dtype), room["omega"], room["phi"], room["baseline"]


@_backward.register_fake
def _(y_bar: Tensor, x: Tensor, omega: Tensor, phi: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sums = [x.new_empty(omega.shape, dtype=torch.float32) for _ in range(3)]
    return x.new_empty(x.shape), sums[0], sums[1], sums[2]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, omega, phi, baseline = inputs
    ctx.save_for_backward(x, omega, phi)
    ctx.dtype_of_baseline = None if baseline is None else baseline.dtype


def _autograd(ctx: Any, y_bar: Tensor) -> tuple[Tensor | None, ...]:
    x, omega, phi = ctx.saved_tensors
    grads = _backward(y_bar, x, omega, phi)
    dtypes = (x.dtype, omega.dtype, phi.dtype, ctx.dtype_of_baseline)
    wanted = zip(ctx.needs_input_grad, grads, dtypes, strict=True)
    return tuple(grad.to(dtype) if needed else None for needed, grad, dtype in wanted)


_forward.register_autograd(_autograd, setup_context=_setup_context)


def oscillate_rust(x: Tensor, omega: Tensor, phi: Tensor, baseline: Tensor | None) -> Tensor:
    """See :func:`bouton.ops.oscillate.oscillate`; x has elements, on the CPU, and is not float64.

    Raises:
        ImportError: the wheel is not installed, or too old.
    """
    y: Tensor = _forward(x.reshape(-1, x.shape[-1]), omega, phi, baseline)
    return y.view(x.shape)
