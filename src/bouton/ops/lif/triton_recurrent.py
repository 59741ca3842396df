"""Neurons that hear each other's last spikes, on a GPU by Triton kernels.

With few neurons (:func:`walks`) one launch goes through all tokens: a program has the whole map and 16 sequences, so
that few of a GPU's processors work, but none waits for another. With more neurons the map does not fit, and every token
is one kernel and one matrix product of torch's: two launches, whose cost is most of the time of a short step.

Both passes are exact: nothing is cut off. All membrane potentials are kept for the backward pass, 4 bytes per neuron
and token, since computing them anew would take the matrix products again. The gradient of the map is one matrix product
after the loop: with delta = dL/du and M = sum over tokens of delta s^T it is gain M; and of the gradient of a gain,
sum of delta (x + W s), the second part is the sum of M W over what a neuron hears.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

# For sm_90: with more, or with more than half as many but not a multiple of 16, registers spill. A gain, documents and
# an attached reset together spill 32 bytes at most, with more than half as many (benchmarks/results/lif_sm90.json).
MOST_NEURONS = 128
SEQUENCES = 16  # of a program that walks: the least that a tensor core takes


@cache
def _kernels() -> Any:
    from bouton.ops.lif import triton_recurrent_kernels

    return triton_recurrent_kernels


def walks(width: int) -> bool:
    """Whether one launch goes through all tokens."""
    return width <= MOST_NEURONS and (width % 16 == 0 or 2 * width <= MOST_NEURONS)


def _options(gain: Tensor | None, starts: Tensor | None, reset: str, width: int) -> dict[str, Any]:
    """What is chosen when a kernel is compiled."""
    shared = {"RESET": reset, "GAIN": gain is not None, "STARTS": starts is not None, "enable_fp_fusion": False}
    if not walks(width):
        return {**shared, "BH": 128, "num_warps": 4}
    padded = max(16, 1 << (width - 1).bit_length())
    return {**shared, "BB": SEQUENCES, "BH": padded, "num_warps": 8 if padded > 32 else 4}


def _grid(batch: int, width: int) -> tuple[int, ...]:
    return (-(-batch // SEQUENCES),) if walks(width) else (-(-width // 128), batch)


def _bytes(starts: Tensor | None, x: Tensor) -> Tensor:
    """``starts`` as the kernels read it; in its place anything, which is never read."""
    return x if starts is None else starts.contiguous().view(torch.uint8)


def launch_forward(
    x: Tensor,
    w_rec: Tensor,
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
    """Spikes, the last u, and for the backward pass, which the surrogate is for, the u before each token."""
    x = x.contiguous()
    batch, tokens, width = x.shape
    spikes = torch.empty_like(x)
    kept = u0.new_empty(batch, tokens + 1 if save else 1, width)
    constants = (beta.contiguous(), theta.contiguous(), (beta if gain is None else gain).contiguous())
    options = {**_options(gain, starts, reset, width), "SAVE": save}
    flags = _bytes(starts, x)
    if walks(width):
        _kernels().walk[_grid(batch, width)](
            x, w_rec.contiguous(), *constants, u0.contiguous(), s0.contiguous(), flags, spikes, kept, batch, tokens,
            width, **options,
        )  # fmt: skip
    else:
        kept[:, 0] = u0
        told = s0.clone() if starts is None else s0.masked_fill(starts[:, :1], 0.0)
        sound, hears = torch.empty_like(told), w_rec.t()
        for t in range(tokens):
            torch.mm(told, hears, out=sound)
            _kernels().step[_grid(batch, width)](
                x, sound, *constants, flags, spikes, kept, told, t, tokens, width, **options
            )
    return spikes, kept[:, -1].clone(), kept if save else kept.new_empty(0)


def launch_backward(
    spikes_bar: Tensor,
    last_bar: Tensor,
    kept: Tensor,
    x: Tensor,
    w_rec: Tensor,
    beta: Tensor,
    theta: Tensor,
    gain: Tensor | None,
    s0: Tensor,
    starts: Tensor | None,
    reset: str,
    surrogate: str,
    alpha: float,
    detach_reset: bool,
    of_map: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, u0, s0 and w_rec (empty unless asked for), and those of beta, theta and gain, (3, H).

    The last is undefined without a gain.
    """
    x, spikes_bar = x.contiguous(), spikes_bar.contiguous()
    batch, tokens, width = x.shape
    deltas = kept.new_empty(batch, tokens, width)
    constants = (beta.contiguous(), theta.contiguous(), (beta if gain is None else gain).contiguous())
    options = {**_options(gain, starts, reset, width), "SURROGATE": surrogate, "DETACH": detach_reset}
    flags = _bytes(starts, x)
    planes = 3 if gain is not None else 2
    if walks(width):
        sums = kept.new_empty(planes, batch, width)
        u0_bar, s0_bar = torch.empty_like(last_bar), torch.empty_like(last_bar)
        _kernels().walk_back[_grid(batch, width)](
            x, w_rec.contiguous(), *constants, s0.contiguous(), flags, kept, spikes_bar, last_bar.contiguous(), deltas,
            u0_bar, s0_bar, sums, batch * width, alpha, batch, tokens, width, **options,
        )  # fmt: skip
    else:
        sums = kept.new_zeros(planes, batch, width)
        u0_bar = last_bar.clone(memory_format=torch.contiguous_format)
        s0_bar, asked = torch.zeros_like(u0_bar), torch.zeros_like(u0_bar)
        asks = torch.empty_like(u0_bar)
        for t in range(tokens - 1, -1, -1):
            _kernels().step_back[_grid(batch, width)](
                x, asked, *constants, s0.contiguous(), flags, kept, spikes_bar, deltas, u0_bar, s0_bar, asks, sums,
                batch * width, alpha, t, tokens, width, **options,
            )  # fmt: skip
            torch.mm(asks, w_rec, out=asked)
        s0_bar += asked
    of_constants = sums.sum(dim=1)
    map_bar = kept.new_empty(0)
    if of_map or gain is not None:
        told = (kept[:, :-1] > theta).to(kept.dtype)
        told[:, 0] = s0
        if starts is not None:
            told.masked_fill_(starts[:, :, None], 0.0)
        together = deltas.flatten(0, 1).t() @ told.flatten(0, 1)
        if gain is not None:
            of_constants[2] += (together * w_rec).sum(dim=1)
        if of_map:
            map_bar = together if gain is None else gain[:, None] * together
    x_bar = deltas if gain is None else gain * deltas
    return x_bar.to(x.dtype), u0_bar, s0_bar, map_bar, of_constants


_forward = torch.library.custom_op("bouton::rlif_triton", launch_forward, mutates_args=())
_backward = torch.library.custom_op("bouton::rlif_triton_backward", launch_backward, mutates_args=())


@_forward.register_fake
def _(
    x: Tensor,
    w_rec: Tensor,
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
    return x.new_empty(x.shape), u0.new_empty(u0.shape), u0.new_empty((batch, tokens + 1, width) if save else 0)


@_backward.register_fake
def _(
    spikes_bar: Tensor,
    last_bar: Tensor,
    kept: Tensor,
    x: Tensor,
    w_rec: Tensor,
    beta: Tensor,
    theta: Tensor,
    gain: Tensor | None,
    s0: Tensor,
    starts: Tensor | None,
    reset: str,
    surrogate: str,
    alpha: float,
    detach_reset: bool,
    of_map: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    state = last_bar.shape
    sums = kept.new_empty(3 if gain is not None else 2, x.shape[2])
    map_bar = kept.new_empty(w_rec.shape if of_map else 0)
    return x.new_empty(x.shape), last_bar.new_empty(state), last_bar.new_empty(state), map_bar, sums


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, w_rec, beta, theta, gain, _, s0, starts, *choices, _ = inputs
    ctx.save_for_backward(output[2], x, w_rec, beta, theta, gain, s0, starts)
    ctx.choices = choices


def _autograd(ctx: Any, spikes_bar: Tensor, last_bar: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    of_map = ctx.needs_input_grad[1]
    x_bar, u0_bar, s0_bar, map_bar, sums = _backward(spikes_bar, last_bar, *saved, *ctx.choices, of_map)
    grads = (x_bar, map_bar, sums[0], sums[1], sums[2] if saved[5] is not None else None, u0_bar, s0_bar)
    wanted = zip(ctx.needs_input_grad, grads, strict=False)
    return *(grad if needed else None for needed, grad in wanted), *[None] * 6


_forward.register_autograd(_autograd, setup_context=_setup_context)


def rlif_triton(
    x: Tensor,
    beta: Tensor,
    theta: Tensor,
    gain: Tensor | None,
    w_rec: Tensor,
    u0: Tensor,
    s0: Tensor,
    starts: Tensor | None,
    reset: str,
    surrogate: str,
    alpha: float,
    detach_reset: bool,
) -> tuple[Tensor, Tensor]:
    """See :func:`bouton.ops.lif.triton.lif_triton`."""
    tensors = (x, w_rec, beta, theta, gain, u0, s0)
    save = torch.is_grad_enabled() and any(y is not None and y.requires_grad for y in tensors)
    spikes, last, _ = _forward(*tensors, starts, reset, surrogate, alpha, detach_reset, save)
    return spikes, last
