"""Presynaptic-fatigue attention on a GPU by Triton kernels.

Inputs in float32 or bfloat16; state, scores and sums in float32. One pass forward and one backward
(:mod:`.triton_forward`, :mod:`.triton_backward`), and the recurrence itself for a few queries (:mod:`.triton_decode`).
Nothing here waits for the device. Both passes are opaque operators of ``torch.library``, as in :mod:`.torch`.

The kernels are imported at their first use: whether Triton compiles or interprets them is settled then.
"""

from __future__ import annotations

import importlib
import math
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bouton.ops.fatigue_attention.reference import Kinetics
from bouton.ops.triton_runtime import interpreted

DTYPES = (torch.float32, torch.bfloat16)
MOST_DEPTH = 256
COMBINED = 32  # queries of a program that adds up the parts of their outputs
DECODED_QUERIES = 8  # up to here the recurrence is walked through, unless gradients are wanted


def refuses(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> str | None:
    """Why the kernels cannot execute a call with these arguments; None if they can."""
    if q.dtype not in DTYPES or k.dtype != q.dtype or v.dtype != q.dtype:
        names = ", ".join(str(x.dtype).removeprefix("torch.") for x in (q, k, v))
        return f"takes q, k, v that are all float32 or all bfloat16, not {names}"
    if q.shape[-1] > MOST_DEPTH:
        return f"takes heads of at most {MOST_DEPTH} dimensions, not {q.shape[-1]}"
    if v.shape[-1] != q.shape[-1]:
        return f"takes values as wide as the keys ({q.shape[-1]}), not {v.shape[-1]}"
    if bias is not None:
        return "takes no bias on the logits"
    if q.is_cuda and torch.are_deterministic_algorithms_enabled() and q.requires_grad:
        return "adds up the gradient of q by atomics, but deterministic algorithms are asked for"
    return None


@cache
def _kernels() -> SimpleNamespace:
    """The kernels; imported late, since an import of this module must not need triton."""
    parts = (f"bouton.ops.fatigue_attention.triton_{name}" for name in ("synapse", "forward", "backward", "decode"))
    synapse, forward, backward, decode = map(importlib.import_module, parts)
    return SimpleNamespace(synapse=synapse, forward=forward, backward=backward, decode=decode)


class Tiling(NamedTuple):
    """How the kernels are launched."""

    queries: int  # per tile; the distance of the stored states
    keys: int  # per tile
    warps: int
    stages: int


def padded(depth: int) -> int:
    """Depth of the tiles for heads of ``depth`` dimensions: the next power of two, at least 16."""
    return max(16, 1 << (depth - 1).bit_length())


def tiling(kernel: str, depth: int, dtype: torch.dtype, *, general: bool = False, masked: bool = False) -> Tiling:
    """The tiles of ``kernel`` ("advance", "backward") for heads of ``depth`` dimensions.

    Those that need the fewest instructions per pair among the ones that do not spill registers on sm_90
    (``benchmarks/gpu_offline.py``); a window or documents (``masked``) leave fewer registers. In "advance" there are 32
    keys per warp, or a multiple of it, but for the widest in float32: so a thread holds whole columns of a tile.
    """
    if interpreted():
        return Tiling({"advance": 16, "backward": 8}[kernel], 32, {"advance": 1, "backward": 4}[kernel], 1)
    depth = padded(depth)
    if kernel == "advance":
        if dtype == torch.float32 and depth > 128:
            return Tiling(16, 32, 4, 1)  # more keys would not fit into the shared memory
        if dtype == torch.float32 or depth > 128:
            return Tiling(16, 64, 2, 1)
        if depth > 64:
            return Tiling(32, 256, 8, 1)
        return Tiling(16, 128 if masked else 256, 4, 1)
    if dtype == torch.float32:
        return Tiling(16, 16, 4, 1)
    if depth > 64:
        return Tiling(16, 64 if depth <= 128 else 32, 8, 1)
    return Tiling(16, 32 if general or masked else 64, 4, 1)


def span(depth: int, dtype: torch.dtype) -> int:
    """Queries from one stored state to the next: the tiles of the backward pass start from them."""
    return tiling("backward", depth, dtype).queries


def gate_terms(dtype: torch.dtype) -> tuple[int, float]:
    """Terms of the polynomial for the gate, and the relative error up to which it is used: as exact as the inputs."""
    return (14, 3e-7) if dtype == torch.float32 else (8, 3e-4)


@cache
def _gate_matrices(terms: int, device: torch.device) -> Tensor:
    return torch.from_numpy(_kernels().synapse.gate_matrices(terms)).to(device)


def _table(kinetics: Tensor, dtype: torch.dtype) -> Tensor:
    """The constants of every head as the kernels want them."""
    synapse = _kernels().synapse
    heads = kinetics.shape[1]
    terms, tolerance = gate_terms(dtype)
    table = kinetics.new_zeros(heads, synapse.CONSTANTS.value)
    matrices = _gate_matrices(terms, kinetics.device)
    synapse.prepare[(heads,)](kinetics, matrices, table, heads, TERMS=terms, TOLERANCE=tolerance, num_warps=1)
    return table


def _strides(*tensors: Tensor) -> tuple[int, ...]:
    return tuple(stride for x in tensors for stride in x.stride()[:3])


def _rows(x: Tensor) -> Tensor:
    """With unit stride along the last dimension, which the kernels rely on."""
    return x if x.stride(-1) == 1 else x.contiguous()


def constants(q: Tensor, k: Tensor, kinetics_rule: str, release: str, window: int, segmented: bool) -> dict[str, Any]:
    """What is known when a kernel is compiled."""
    depth = q.shape[-1]
    return {
        "GROUP": q.shape[1] // k.shape[1],
        "D": depth,
        "BD": padded(depth),
        "MINIMUM": kinetics_rule == "min",
        "AGED": release == "age",
        "WINDOW": window > 0,
        "SEGMENTS": segmented,
    }


def options(tiles: Tiling, dtype: torch.dtype, general: bool) -> dict[str, Any]:
    """What is chosen when a kernel is compiled."""
    return {
        "BM": tiles.queries,
        "BN": tiles.keys,
        "FLAT": tiles.keys >= 32 * tiles.warps,
        "TERMS": gate_terms(dtype)[0],
        "GENERAL": general,
        "PRECISION": precision(dtype),
        "num_warps": tiles.warps,
        "num_stages": tiles.stages,
    }


def run_of(tiles: Tiling) -> int:
    """How many queries, and keys, of a tile a thread holds in a row."""
    return 4 if tiles.queries * tiles.keys >= 16 * 32 * tiles.warps else 2


def precision(dtype: torch.dtype) -> str:
    """How float32 tiles are multiplied: three products of tf32 parts, nearly as exact as float32."""
    return "tf32x3" if dtype == torch.float32 else "tf32"


def _segments(segments_q: Tensor | None, segments_k: Tensor | None, q: Tensor) -> tuple[Tensor, Tensor]:
    if segments_q is None or segments_k is None:
        return q, q  # never read
    return segments_q.contiguous(), segments_k.contiguous()


def _scale(q: Tensor) -> float:
    return math.log2(math.e) / math.sqrt(q.shape[-1])


def launch_forward(
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
    batch, heads, tq, depth = q.shape
    tk = k.shape[2]
    q, k, v = _rows(q), _rows(k), _rows(v)
    kinetics, calcium, pool = kinetics.contiguous(), calcium.contiguous(), pool.contiguous()
    table = _table(kinetics, q.dtype)
    seg_q, seg_k = _segments(segments_q, segments_k, q)
    shared = constants(q, k, rule, release, window, segments_q is not None)
    out = q.new_empty(batch, heads, tq, depth)
    calcium_out, pool_out = torch.empty_like(calcium), torch.empty_like(pool)
    scalars = (tq, tk, heads, window, _scale(q))
    if tq <= DECODED_QUERIES and not save:
        keys = 64
        programs = -(-tk // keys)
        parts = q.new_empty(batch * heads, programs, tq, depth, dtype=torch.float32)
        totals = parts.new_empty(batch * heads, programs, tq)
        decode = _kernels().decode
        decode.decode[(programs, batch * heads)](
            q, k, v, table, calcium, pool, seg_q, seg_k, calcium_out, pool_out, parts, totals,
            *_strides(q, k, v), *scalars, **shared, BN=keys, num_warps=4,
        )  # fmt: skip
        decode.combine[(tq, batch * heads)](
            parts, totals, out, tq, programs, D=depth, BD=padded(depth), BP=32, num_warps=4
        )
        return out, calcium_out, pool_out, totals.new_empty(0), totals.new_empty(0)

    masked = window > 0 or segments_q is not None
    distance, tiles = span(depth, q.dtype), tiling("advance", depth, q.dtype, masked=masked)
    boundaries = calcium.new_empty((batch * heads, -(-tq // distance), 2, tk) if save else (0,))
    total = calcium.new_empty(batch, heads, tq)
    slots = -(-tk // tiles.keys)
    if window > 0:
        slots = min(slots, -(-(window + COMBINED + tiles.queries + tiles.keys) // tiles.keys) + 1)
    parts = q.new_empty(batch * heads, slots, tq, depth)
    totals = total.new_empty(batch * heads, slots, tq)
    kernels = _kernels().forward
    for general in (False, True):
        kernels.advance[(-(-tk // tiles.keys), batch * heads)](
            q, k, v, table, calcium, pool, seg_q, seg_k, boundaries, parts, totals, calcium_out, pool_out,
            *_strides(q, k, v), *scalars, slots, **shared, **options(tiles, q.dtype, general), SPAN=distance, SAVE=save,
        )  # fmt: skip
    kernels.gather[(-(-tq // COMBINED), batch * heads)](
        parts, totals, out, total, tq, tk, window, slots,
        D=depth, BD=padded(depth), QUERIES=tiles.queries, KEYS=tiles.keys, ROWS=COMBINED, WINDOW=window > 0,
        num_warps=4,
    )  # fmt: skip
    if not save:
        return out, calcium_out, pool_out, total.new_empty(0), total.new_empty(0)
    return out, calcium_out, pool_out, total, boundaries


_forward = torch.library.custom_op("bouton::fatigue_attention_triton", launch_forward, mutates_args=())


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
    batch, heads, tq, depth = q.shape
    blocks = -(-tq // span(depth, q.dtype))
    return (
        q.new_empty(q.shape),
        calcium.new_empty(calcium.shape),
        pool.new_empty(pool.shape),
        calcium.new_empty((batch, heads, tq) if save else (0,)),
        calcium.new_empty((batch * heads, blocks, 2, k.shape[2]) if save else (0,)),
    )


def launch_backward(
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
    segments_q: Tensor | None,
    segments_k: Tensor | None,
    window: int,
    rule: str,
    release: str,
    learned: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, kinetics (10, Hq; zero unless ``learned``), calcium, pool."""
    batch, heads, tq, depth = q.shape
    kv_heads, tk = k.shape[1:3]
    q, k, v, out_bar = _rows(q), _rows(k), _rows(v), out_bar.to(q.dtype).contiguous()
    kinetics, calcium_bar, pool_bar = kinetics.contiguous(), calcium_bar.contiguous(), pool_bar.contiguous()
    table = _table(kinetics, q.dtype)
    seg_q, seg_k = _segments(segments_q, segments_k, q)
    kernels = _kernels().backward
    share_bar, shift = torch.empty_like(out_bar), torch.empty_like(total)
    rows = batch * heads * tq
    kernels.slopes[(-(-rows // 32),)](
        out, out_bar, total, share_bar, shift, rows, D=depth, BD=padded(depth), BM=32, num_warps=4
    )
    q_bar = q.new_zeros(q.shape, dtype=torch.float32)
    # The query heads of a group leave their own gradients, which are added up below in a fixed order.
    each = (batch, heads, tk, depth)
    partial = k.dtype if heads == kv_heads else torch.float32
    k_bar, v_bar = k.new_empty(each, dtype=partial), v.new_empty(each, dtype=partial)
    calcium_bar_in, pool_bar_in = torch.empty_like(calcium_bar), torch.empty_like(pool_bar)
    masked = window > 0 or segments_q is not None
    tilings = [tiling("backward", depth, q.dtype, general=general, masked=masked) for general in (False, True)]
    programs = -(-tk // min(tiles.keys for tiles in tilings))
    sums = total.new_zeros(batch * heads * programs * kernels.SUMS.value if learned else 0)
    for general, tiles in zip((False, True), tilings, strict=True):
        kernels.backward[(-(-tk // tiles.keys), batch * heads)](
            q, k, v, share_bar, table, seg_q, seg_k, boundaries, shift, calcium_bar, pool_bar,
            q_bar, k_bar, v_bar, calcium_bar_in, pool_bar_in, sums, programs,
            *_strides(q, k, v), tq, tk, heads, window, _scale(q),
            **constants(q, k, rule, release, window, segments_q is not None),
            **options(tiles, q.dtype, general), LEARNED=learned, RUN=run_of(tiles),
        )  # fmt: skip
    kinetics_bar = torch.zeros_like(kinetics)
    if learned:
        kernels.finish[(heads,)](
            sums, kinetics, kinetics_bar, batch, heads, programs, AGED=release == "age", BP=32, num_warps=1
        )
    if heads != kv_heads:
        k_bar, v_bar = (x.view(batch, kv_heads, -1, tk, depth).sum(2).to(k.dtype) for x in (k_bar, v_bar))
    return q_bar.to(q.dtype), k_bar, v_bar, kinetics_bar, calcium_bar_in, pool_bar_in


_backward = torch.library.custom_op("bouton::fatigue_attention_triton_backward", launch_backward, mutates_args=())


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
    segments_q: Tensor | None,
    segments_k: Tensor | None,
    window: int,
    rule: str,
    release: str,
    learned: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    q_bar, k_bar, v_bar, kinetics_bar = (x.new_empty(x.shape) for x in (q, k, v, kinetics))
    return (
        q_bar,
        k_bar,
        v_bar,
        kinetics_bar,
        calcium_bar.new_empty(calcium_bar.shape),
        pool_bar.new_empty(pool_bar.shape),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, kinetics, _, _, segments_q, segments_k, window, rule, release, _ = inputs
    out, _, _, total, boundaries = output
    ctx.save_for_backward(out, total, boundaries, q, k, v, kinetics, segments_q, segments_k)
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
    """Same arguments and results as :func:`bouton.ops.fatigue_attention.reference.forward`, on a GPU.

    The state of the last Tq keys must be fresh (calcium 0, a full pool): keys are not looked at before their birth.
    Logits are not checked, since that would wait for the device: up to +-40 results are as exact as the dtype allows;
    from 88 on the exponential overflows and the outputs are not numbers; below -87 a key counts as not seen.

    Raises:
        ValueError: arguments that the kernels cannot take.
    """
    if (reason := refuses(q, k, v, bias)) is not None:
        raise ValueError(f"the triton backend of fatigue_attention {reason}")
    stacked = torch.stack(tuple(kinetics))
    tensors = (q, k, v, stacked, calcium, pool)
    save = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    out, calcium, pool, *_ = _forward(*tensors, segments_q, segments_k, window or 0, rule, release, save)
    return out, calcium, pool


def plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention without fatigue by kernels of the same kind, (B, H, T, D): a peer for timings."""
    from bouton.ops.fatigue_attention import plain

    return plain.attention(q, k, v)
