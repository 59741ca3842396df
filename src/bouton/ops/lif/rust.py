"""The neurons on the CPU by the compiled kernels of the wheel ``bouton-kernels`` (``kernels_rs/src/lif``).

float32 inside, token by token and vectorised over the neurons; the result does not depend on the number of threads. The
membrane potential is computed in the order of the definition, every product and sum rounded by itself (no fused
multiply-add), so that spikes equal those of the torch form in float32 to the last bit. What recurrent neurons hear is
summed over the spiking ones alone, in their order, with fused multiply-add where the processor has it; a matrix product
sums in another order, so that beyond some tens of tokens single spikes may differ by rounding.

For the backward pass the current and every eighth membrane potential are kept. Both passes are opaque operators of
``torch.library``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bouton.ops import wheel

if TYPE_CHECKING:
    import numpy as np

    from bouton.ops.lif import LIFOptions


def why_not() -> str | None:
    """Why the kernels cannot run on this machine; None if they can."""
    return wheel.why_not("lif_backward")


def refuses(x: Tensor) -> str | None:
    """Why the kernels cannot execute a call with this input; None if they can."""
    if x.dtype == torch.float64:
        return "computes in float32, not in float64"
    return None


def _array(x: Tensor | None) -> np.ndarray[Any, Any] | None:
    return None if x is None else x.detach().contiguous().numpy()


def _call(
    x: Tensor,
    beta: Tensor,
    theta: Tensor,
    gain: Tensor | None,
    w_rec: Tensor | None,
    u0: Tensor,
    s0: Tensor,
    starts: Tensor | None,
    reset: str,
) -> dict[str, Any]:
    # A map that is stored by columns is taken as it is: the kernel then need not turn it.
    turned = w_rec is not None and not w_rec.is_contiguous() and w_rec.t().is_contiguous()
    return {
        "x": _array(x),
        "beta": _array(beta),
        "theta": _array(theta),
        "gain": _array(torch.ones_like(beta) if gain is None else gain),
        "u0": _array(u0),
        "s0": _array(s0),
        "starts": _array(starts),
        "w_rec": _array(w_rec.t() if turned and w_rec is not None else w_rec),
        "transposed": turned,
        "reset": reset,
    }


def _kept(x: Tensor, save: bool) -> tuple[int, int, int]:
    """Shape of the stored membrane potentials."""
    return x.shape[0], (x.shape[1] - 1) // wheel.kernels().LIF_CHUNK if save else 0, x.shape[2]


def _currents(x: Tensor, w_rec: Tensor | None, save: bool) -> tuple[int, int, int]:
    """Shape of what the neurons were given in all, where that is not x itself."""
    return x.shape[0], x.shape[1] if save and w_rec is not None else 0, x.shape[2]


@torch.library.custom_op("bouton::lif_rust", mutates_args=(), device_types="cpu")
def _forward(
    x: Tensor,
    beta: Tensor,
    theta: Tensor,
    gain: Tensor | None,
    w_rec: Tensor | None,
    u0: Tensor,
    s0: Tensor,
    starts: Tensor | None,
    reset: str,
    surrogate: str,
    alpha: float,
    detach_reset: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """spikes (B, T, H), u (B, H), and what the backward pass, which the surrogate is for, starts from."""
    # Torch's memory, not the kernel's own: it is at hand, and fresh pages cost more than the arithmetic.
    room = {
        "spikes": torch.empty(x.shape),
        "last": torch.empty(u0.shape),
        "kept": torch.empty(_kept(x, save)),
        "currents": torch.empty(_currents(x, w_rec, save)),
    }
    call = _call(x, beta, theta, gain, w_rec, u0, s0, starts, reset)
    wheel.kernels().lif(call, {name: y.numpy() for name, y in room.items()}, torch.get_num_threads())
    return room["spikes"], room["last"], room["kept"], room["currents"]


@_forward.register_fake
def _(
    x: Tensor,
    beta: Tensor,
    theta: Tensor,
    gain: Tensor | None,
    w_rec: Tensor | None,
    u0: Tensor,
    s0: Tensor,
    starts: Tensor | None,
    reset: str,
    surrogate: str,
    alpha: float,
    detach_reset: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    kept, currents = _kept(x, save), _currents(x, w_rec, save)
    return x.new_empty(x.shape), x.new_empty(u0.shape), x.new_empty(kept), x.new_empty(currents)


@torch.library.custom_op("bouton::lif_rust_backward", mutates_args=(), device_types="cpu")
def _backward(
    spikes_bar: Tensor,
    last_bar: Tensor,
    spikes: Tensor,
    kept: Tensor,
    currents: Tensor,
    beta: Tensor,
    theta: Tensor,
    gain: Tensor | None,
    w_rec: Tensor | None,
    u0: Tensor,
    s0: Tensor,
    starts: Tensor | None,
    reset: str,
    surrogate: str,
    alpha: float,
    detach_reset: bool,
    need_map: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, beta, theta, gain, w_rec, u0 and s0; that of w_rec is empty unless needed."""
    call = _call(currents, beta, theta, gain, w_rec, u0, s0, starts, reset)
    of_map = w_rec.shape if need_map and w_rec is not None else (0, 0)
    shapes = {"x": currents.shape, "beta": beta.shape, "theta": beta.shape, "gain": beta.shape, "w_rec": of_map}
    room = {name: torch.empty(shape) for name, shape in {**shapes, "u0": u0.shape, "s0": u0.shape}.items()}
    wheel.kernels().lif_backward(
        call,
        *(_array(y) for y in (spikes, kept, spikes_bar, last_bar)),
        surrogate,
        alpha,
        detach_reset,
        {name: y.numpy() for name, y in room.items()},
        torch.get_num_threads(),
    )
    return tuple(room.values())  # type: ignore[return-value]


@_backward.register_fake
def _(
    spikes_bar: Tensor,
    last_bar: Tensor,
    spikes: Tensor,
    kept: Tensor,
    currents: Tensor,
    beta: Tensor,
    theta: Tensor,
    gain: Tensor | None,
    w_rec: Tensor | None,
    u0: Tensor,
    s0: Tensor,
    starts: Tensor | None,
    reset: str,
    surrogate: str,
    alpha: float,
    detach_reset: bool,
    need_map: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    of_map = w_rec.shape if need_map and w_rec is not None else (0, 0)
    shapes = (currents.shape, beta.shape, beta.shape, beta.shape, of_map, u0.shape, u0.shape)
    return tuple(spikes.new_empty(shape) for shape in shapes)  # type: ignore[return-value]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, *tensors, reset, surrogate, alpha, detach_reset, _ = inputs
    spikes, _, kept, currents = output
    # Else autograd would make zeros as large as what is stored, every time.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(spikes, kept, x if tensors[3] is None else currents, *tensors)
    ctx.options = (reset, surrogate, alpha, detach_reset)


def _autograd(ctx: Any, spikes_bar: Tensor | None, last_bar: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
    spikes, kept, currents, beta, theta, gain, w_rec, u0, s0, starts = ctx.saved_tensors
    spikes_bar = torch.zeros_like(spikes) if spikes_bar is None else spikes_bar
    last_bar = torch.zeros_like(u0) if last_bar is None else last_bar
    constants = (beta, theta, gain, w_rec, u0, s0, starts)
    need_map = ctx.needs_input_grad[4]
    grads = _backward(spikes_bar, last_bar, spikes, kept, currents, *constants, *ctx.options, need_map)
    wanted = zip(ctx.needs_input_grad, grads, strict=False)
    return *(grad if needed else None for needed, grad in wanted), None, None, None, None, None, None


_forward.register_autograd(_autograd, setup_context=_setup_context)


def lif_rust(
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
    """See :func:`bouton.ops.lif.reference.lif_reference`; all float32, T >= 1, on the CPU.

    A map given as the transpose of a contiguous tensor (``w.t().contiguous().t()``) is used as it is; a decoding step
    then reads the columns of the spiking neurons alone.

    Raises:
        ValueError: a shape or option that does not fit.
        ImportError: the wheel is not installed, or too old.
    """
    tensors = (x, beta, theta, gain, w_rec, u0, s0)
    save = torch.is_grad_enabled() and any(y is not None and y.requires_grad for y in tensors)
    before = options.reset == "subtract" and options.reset_order == "before_decay"
    reset = "subtract_before_decay" if before else options.reset
    # Without gradients the dispatcher is not needed, and it is most of the time of a short call.
    execute: Any = _forward if save or torch.compiler.is_compiling() else _forward._init_fn
    choices = (reset, options.surrogate, options.alpha, options.detach_reset, save)
    spikes, u, _, _ = execute(*tensors, starts, *choices)
    return spikes, u
