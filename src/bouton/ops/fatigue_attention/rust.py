"""Presynaptic-fatigue attention on the CPU by the compiled kernels of the wheel ``bouton-kernels``.

float32 inside; one pass over tiles of queries by keys, forward and backward (``kernels_rs/src/fatigue``). The result
does not depend on the number of threads. Both passes are opaque operators of ``torch.library``, as in :mod:`.torch`.
"""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bouton.ops.fatigue_attention.reference import Kinetics

if TYPE_CHECKING:
    import numpy as np

WHEEL = "bouton_kernels"
_TRAINED = ("q", "k", "v", "kinetics", "calcium", "pool")


@cache
def _load() -> ModuleType | str:
    try:
        return importlib.import_module(WHEEL)
    except ImportError as error:
        return f"the wheel '{WHEEL.replace('_', '-')}' is not installed (pip install ./kernels_rs): {error}"


def why_not() -> str | None:
    """Why the kernels cannot run on this machine; None if they can."""
    found = _load()
    return found if isinstance(found, str) else None


def refuses(q: Tensor, bias: Tensor | None) -> str | None:
    """Why the kernels cannot execute a call with these arguments; None if they can."""
    if q.dtype == torch.float64:
        return f"computes in float32, not in {str(q.dtype).removeprefix('torch.')}"
    if bias is not None:
        return "takes no bias on the logits"
    return None


def _kernels() -> ModuleType:
    found = _load()
    if isinstance(found, str):
        raise ImportError(found)
    return found


def _array(x: Tensor) -> np.ndarray[Any, Any]:
    return (x.detach() if x.requires_grad else x).contiguous().numpy()


def _room(**results: Tensor) -> dict[str, Any]:
    """Tensors as what the kernels write into: torch's allocator keeps memory at hand, fresh pages cost time."""
    return {name: x.numpy() for name, x in results.items()}


def _run_forward(call: dict[str, Any], save: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """out, calcium, pool, and for the backward pass the sum of n per query and the state before each block."""
    (batch, heads, tq, depth), tk = call["q"].shape, call["k"].shape[2]
    stored = batch * heads * stored_numbers(tq, tk) if save and call["release"] != "off" else 0
    out, total, boundaries = torch.empty(batch, heads, tq, depth), torch.empty(batch, heads, tq), torch.empty(stored)
    calcium, pool = (torch.empty(batch, heads, tk) for _ in range(2))
    room = _room(out=out, calcium=calcium, pool=pool, total=total, boundaries=boundaries)
    _kernels().fatigue_attention(call, room, save, torch.get_num_threads())
    return out, calcium, pool, total, boundaries


def _run_backward(call: dict[str, Any], saved: tuple[Any, ...], learned: bool) -> tuple[Tensor, ...]:
    """Gradients of q, k, v, kinetics (10, Hq), calcium, pool."""
    q, k, (batch, heads, *_) = call["q"].shape, call["k"].shape, call["q"].shape
    state = batch, heads, k[2]
    grads = dict(zip(_TRAINED, map(torch.empty, (q, k, k, call["kinetics"].shape, state, state)), strict=True))
    _kernels().fatigue_attention_backward(call, *saved, _room(**grads), learned, torch.get_num_threads())
    return tuple(grads.values())


def _call(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kinetics: Tensor,
    calcium: Tensor,
    pool: Tensor,
    segments_q: Tensor | None,
    segments_k: Tensor | None,
    window: int,
    rule: str,
    release: str,
    old_state: bool = False,
) -> dict[str, Any]:
    return {
        "q": _array(q),
        "k": _array(k),
        "v": _array(v),
        "kinetics": _array(kinetics),
        "calcium": _array(calcium),
        "pool": _array(pool),
        "rule": rule,
        "release": release,
        "segments_q": None if segments_q is None else _array(segments_q.long()),
        "segments_k": None if segments_k is None else _array(segments_k.long()),
        "window": window or None,
        "old_state": old_state,
    }


def stored_numbers(tq: int, tk: int) -> int:
    """Numbers per head that the forward pass keeps for the backward pass: the state before each block of queries.

    A block reaches the old keys and those up to its own end; the last one reaches all.
    """
    step: int = _kernels().QUERIES_PER_BLOCK
    whole = (tq - 1) // step
    return 2 * (whole * (tk - tq) + step * (whole * (whole + 1) // 2) + tk)


@torch.library.custom_op("bouton::fatigue_attention_rust", mutates_args=(), device_types="cpu")
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kinetics: Tensor,
    calcium: Tensor,
    pool: Tensor,
    segments_q: Tensor | None,
    segments_k: Tensor | None,
    window: int,
    rule: str,
    release: str,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """out, calcium, pool, and for the backward pass the sum of n per query and the state before each block."""
    call = _call(q, k, v, kinetics, calcium, pool, segments_q, segments_k, window, rule, release)
    return _run_forward(call, save)


@_forward.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kinetics: Tensor,
    calcium: Tensor,
    pool: Tensor,
    segments_q: Tensor | None,
    segments_k: Tensor | None,
    window: int,
    rule: str,
    release: str,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, heads, tq, _ = q.shape
    boundaries = stored_numbers(tq, k.shape[2])
    return (
        q.new_empty(q.shape),
        calcium.new_empty(calcium.shape),
        pool.new_empty(pool.shape),
        q.new_empty((batch, heads, tq)),
        q.new_empty((batch * heads * boundaries if save else 0,)),
    )


@torch.library.custom_op("bouton::fatigue_attention_rust_backward", mutates_args=(), device_types="cpu")
def _backward(
    out_bar: Tensor,
    calcium_bar: Tensor,
    pool_bar: Tensor,
    out: Tensor,
    total: Tensor,
    boundaries: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kinetics: Tensor,
    calcium: Tensor,
    pool: Tensor,
    segments_q: Tensor | None,
    segments_k: Tensor | None,
    window: int,
    rule: str,
    release: str,
    learned: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, kinetics (10, Hq), calcium, pool."""
    call = _call(q, k, v, kinetics, calcium, pool, segments_q, segments_k, window, rule, release)
    saved = tuple(_array(x) for x in (out, total, boundaries, out_bar, calcium_bar, pool_bar))
    q_bar, k_bar, v_bar, kinetics_bar, calcium_bar, pool_bar = _run_backward(call, saved, learned)
    return q_bar, k_bar, v_bar, kinetics_bar, calcium_bar, pool_bar


@_backward.register_fake
def _(
    out_bar: Tensor,
    calcium_bar: Tensor,
    pool_bar: Tensor,
    out: Tensor,
    total: Tensor,
    boundaries: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kinetics: Tensor,
    calcium: Tensor,
    pool: Tensor,
    segments_q: Tensor | None,
    segments_k: Tensor | None,
    window: int,
    rule: str,
    release: str,
    learned: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    q_bar, k_bar, v_bar, kinetics_bar, calcium_bar, pool_bar = (
        x.new_empty(x.shape) for x in (q, k, v, kinetics, calcium, pool)
    )
    return q_bar, k_bar, v_bar, kinetics_bar, calcium_bar, pool_bar


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, window, rule, release, _ = inputs
    out, _, _, total, boundaries = output
    ctx.save_for_backward(out, total, boundaries, *tensors)
    ctx.options = (window, rule, release)


def _autograd(ctx: Any, out_bar: Tensor, calcium_bar: Tensor, pool_bar: Tensor, *_: Tensor | None) -> tuple[Any, ...]:
    learned = ctx.needs_input_grad[3]
    q, k, v, kinetics, calcium, pool = _backward(
        out_bar, calcium_bar, pool_bar, *ctx.saved_tensors, *ctx.options, learned
    )
    return q, k, v, kinetics if learned else None, calcium, pool, *[None] * 6


_forward.register_autograd(_autograd, setup_context=_setup_context)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kinetics: Kinetics,
    calcium: Tensor,
    pool: Tensor,
    *,
    rule: str,
    release: str,
    segments_q: Tensor | None = None,
    segments_k: Tensor | None = None,
    window: int | None = None,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Same arguments and results as :func:`bouton.ops.fatigue_attention.reference.forward`, on the CPU.

    Halves are computed in float32 and rounded once, at the end.

    The state of the last Tq keys must be fresh (calcium 0, a full pool): keys are not looked at before their birth.

    Raises:
        ValueError: a shape or constant that does not fit, or a logit beyond +-40 (or not a number).
        ImportError: the wheel is not installed.
    """
    if (reason := refuses(q, bias)) is not None:
        raise ValueError(f"the rust backend of fatigue_attention {reason}")
    stacked = torch.stack(kinetics)
    tensors = (q.float(), k.float(), v.float(), stacked, calcium, pool)
    save = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    execute = _forward if save or torch.compiler.is_compiling() else _forward._init_fn
    out, calcium, pool, *_ = execute(*tensors, segments_q, segments_k, window or 0, rule, release, save)
    return out.to(q.dtype), calcium, pool


def infer(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kinetics: Kinetics,
    old: tuple[Tensor, Tensor] | None,
    *,
    rule: str,
    release: str,
    segments_q: Tensor | None = None,
    segments_k: Tensor | None = None,
    window: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`forward` without gradients and without an operator around it, for short calls (decoding).

    ``old``: calcium and pool (B, Hq, n) with n >= Tk - Tq, the last ones those of the old keys, which stand before the
    queries; None: they are fresh, as the keys of the queries always are.
    """
    stacked = torch.stack(kinetics)
    if old is None:
        calcium = stacked.new_zeros(*q.shape[:2], k.shape[2] - q.shape[2])
        old = calcium, kinetics.r_max[:, None].expand_as(calcium)
    calcium, pool = old[0].float(), old[1].float()
    parts = (q.float(), k.float(), v.float(), stacked, calcium, pool)
    call = _call(*parts, segments_q, segments_k, window or 0, rule, release, old_state=True)
    out, calcium, pool, *_ = _run_forward(call, save=False)
    return out.to(q.dtype), calcium, pool


class _Plain(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch, heads, tq, _ = q.shape
        none = q.new_zeros(batch, heads, k.shape[2] - tq)
        kinetics = q.new_zeros(len(Kinetics._fields), heads)
        call = _call(q, k, v, kinetics, none, none, None, None, 0, "min", "off", old_state=True)
        out, calcium, pool, total, stored = _run_forward(call, save=True)
        # Without synapses nothing is stored, and the gradients of the state are not looked at: the state will do.
        ctx.call, ctx.saved = call, tuple(x.numpy() for x in (out, total, stored, calcium, pool))
        return out

    @staticmethod
    def backward(ctx: Any, *bars: Tensor) -> tuple[Tensor, ...]:
        out, total, stored, calcium, pool = ctx.saved
        saved = (out, total, stored, _array(bars[0]), calcium, pool)
        return _run_backward(ctx.call, saved, learned=False)[:3]


def plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention by the same loops with the synapses left out: what fatigue costs is measured against it.

    q (B, Hq, Tq, D), k and v (B, Hkv, Tk, D), float32 on the CPU; the queries are the last Tq positions.
    """
    out: Tensor = _Plain.apply(q, k, v)
    return out
