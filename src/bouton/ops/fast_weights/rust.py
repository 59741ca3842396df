"""Fast weights on the CPU by the compiled kernels of the wheel ``bouton-kernels``, see ``kernels_rs/src/fast_weights``.

float32 inside, token by token, forward and backward; the result does not depend on the number of threads. Both passes
are opaque operators of ``torch.library``. Their tensors are token-major, (B, T, H, r | dv): the layout in which a
projection leaves its heads, so that nothing is copied on the way in or out.
"""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np

WHEEL = "bouton_kernels"


@cache
def _load() -> ModuleType | str:
    name = WHEEL.replace("_", "-")
    try:
        found = importlib.import_module(WHEEL)
    except ImportError as error:
        return f"the wheel '{name}' is not installed (pip install ./kernels_rs): {error}"
    if not hasattr(found, "fast_weights_backward"):
        return f"the installed wheel '{name}' is older than this op (install it again: pip install ./kernels_rs)"
    return found


def why_not() -> str | None:
    """Why the kernels cannot run on this machine; None if they can."""
    found = _load()
    return found if isinstance(found, str) else None


def refuses(q: Tensor, v: Tensor) -> str | None:
    """Why the kernels cannot execute a call with these arguments; None if they can."""
    if torch.float64 in (q.dtype, v.dtype):
        return "computes in float32, not in float64"
    if 0 in (*q.shape, *v.shape):
        return "needs at least one token, of at least one number"
    return None


def _kernels() -> ModuleType:
    found = _load()
    if isinstance(found, str):
        raise ImportError(found)
    return found


def _array(x: Tensor) -> np.ndarray[Any, Any]:
    return x.detach().contiguous().numpy()


def _optional(x: Tensor | None) -> np.ndarray[Any, Any] | None:
    return None if x is None else _array(x)


def _call(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    gate: Tensor | None,
    rates: Tensor,
    fast: Tensor,
    slow: Tensor | None,
    starts: Tensor | None,
    rule: str,
) -> dict[str, Any]:
    return {
        "q": _array(q),
        "k": _array(k),
        "v": _array(v),
        "eta": _array(eta),
        "gate": _optional(gate),
        "rates": _array(rates),
        "fast": _array(fast),
        "slow": _optional(slow),
        "starts": None if starts is None else _array(starts).view("uint8"),
        "rule": rule,
    }


def _empty(like: Tensor | None, q: Tensor) -> Tensor:
    """An operator cannot return None: what is off comes back without elements."""
    return q.new_empty(0 if like is None else like.shape)


@torch.library.custom_op("bouton::fast_weights_rust", mutates_args=(), device_types="cpu")
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    gate: Tensor | None,
    rates: Tensor,
    fast: Tensor,
    slow: Tensor | None,
    starts: Tensor | None,
    rule: str,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """read (B, T, H, dv), fast, slow, and the states from which the backward pass starts."""
    call = _call(q, k, v, eta, gate, rates, fast, slow, starts, rule)
    read, after, slow_after, kept = map(torch.from_numpy, _kernels().fast_weights(call, save, torch.get_num_threads()))
    slow_after = slow_after if slow is None else slow_after.view(slow.shape)
    return read.view(v.shape), after.view(fast.shape), slow_after, kept


@_forward.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    gate: Tensor | None,
    rates: Tensor,
    fast: Tensor,
    slow: Tensor | None,
    starts: Tensor | None,
    rule: str,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, tokens, heads, rank = q.shape
    chunk, lanes = _kernels().FAST_WEIGHTS_CHUNK, _kernels().FAST_WEIGHTS_LANES
    chunks, columns = -(-tokens // chunk), -(-v.shape[-1] // lanes) * lanes
    kept = batch * heads * chunks * columns * rank * (1 if slow is None else 2)
    return q.new_empty(v.shape), q.new_empty(fast.shape), _empty(slow, q), q.new_empty(kept if save else 0)


@torch.library.custom_op("bouton::fast_weights_rust_backward", mutates_args=(), device_types="cpu")
def _backward(
    read_bar: Tensor,
    fast_bar: Tensor,
    slow_bar: Tensor | None,
    kept: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    gate: Tensor | None,
    rates: Tensor,
    fast: Tensor,
    slow: Tensor | None,
    starts: Tensor | None,
    rule: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, eta, gate, rates, fast, slow."""
    call = _call(q, k, v, eta, gate, rates, fast, slow, starts, rule)
    bars = (_array(kept), _array(read_bar), _array(fast_bar), _optional(slow_bar))
    found = map(torch.from_numpy, _kernels().fast_weights_backward(call, *bars, torch.get_num_threads()))
    like = (q, k, v, eta, gate if slow is not None else None, rates, fast, slow)
    shaped = [x if of is None else x.view(of.shape) for x, of in zip(found, like, strict=True)]
    return tuple(shaped)  # type: ignore[return-value]


@_backward.register_fake
def _(
    read_bar: Tensor,
    fast_bar: Tensor,
    slow_bar: Tensor | None,
    kept: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    gate: Tensor | None,
    rates: Tensor,
    fast: Tensor,
    slow: Tensor | None,
    starts: Tensor | None,
    rule: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    like = (q, k, v, eta, gate if slow is not None else None, rates, fast, slow)
    return tuple(_empty(x, q) for x in like)  # type: ignore[return-value]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, rule, _ = inputs
    # Else autograd would make zeros as large as the stored states, every time.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[3], *tensors)
    ctx.rule = rule


def _autograd(
    ctx: Any, read_bar: Tensor | None, fast_bar: Tensor | None, slow_bar: Tensor | None, _: Tensor | None
) -> tuple[Any, ...]:
    kept, *tensors = ctx.saved_tensors
    q, k, v, eta, gate, rates, fast, slow, starts = tensors
    read_bar = torch.zeros_like(v) if read_bar is None else read_bar
    fast_bar = torch.zeros_like(fast) if fast_bar is None else fast_bar
    if slow is None:
        slow_bar = None
    elif slow_bar is None:
        slow_bar = torch.zeros_like(slow)
    grads = _backward(read_bar, fast_bar, slow_bar, kept, q, k, v, eta, gate, rates, fast, slow, starts, ctx.rule)
    given = (q, k, v, eta, gate if slow is not None else None, rates, fast, slow)
    return *(None if x is None else grad for x, grad in zip(given, grads, strict=True)), None, None, None


_forward.register_autograd(_autograd, setup_context=_setup_context)


def fast_weights_rust(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    *,
    rho_f: Tensor,
    rho_s: Tensor | None,
    eta_s: Tensor | None,
    gate: Tensor | None,
    rule: str,
    fast: Tensor,
    slow: Tensor | None,
    starts: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Same arguments and results as :func:`bouton.ops.fast_weights.torch.fast_weights_torch`, in float32 on the CPU.

    Raises:
        ValueError: a shape or rule that does not fit.
        ImportError: the wheel is not installed, or too old.
    """
    off = torch.zeros_like(rho_f)
    rates = torch.stack((rho_f, off if rho_s is None else rho_s, off if eta_s is None else eta_s))
    by_token = [None if x is None else x.transpose(1, 2) for x in (q, k, v, eta, gate)]
    tensors = (*by_token, rates, fast, slow, starts)
    save = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    execute: Any = _forward if save or torch.compiler.is_compiling() else _forward._init_fn
    read, fast, after, _ = execute(*tensors, rule, save)
    return read.transpose(1, 2), fast, None if slow is None else after
