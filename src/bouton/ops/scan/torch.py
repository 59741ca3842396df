"""The recurrences for all tokens at once, in a number of steps that grows with the logarithm of the length.

A token maps y_{t-1} to y_t. Such maps, put one after another, give maps of the same kind, so neighbouring tokens are
merged into one, the sequence of half the length is solved in the same way, and what it skipped is filled in: each level
passes over half of the numbers of the one before it. With a floor the maps are y -> min(max(w y + x, low), high); the
upper bound is infinite at a single token, and a merged one needs it where w < 0.

Only products of successive ``a`` occur, no quotient of them: they do not overflow where |a| <= 1. Where the product of
the ``a`` of some stretch overflows, the results are not finite.

The backward pass is the affine recurrence in reversed time: with g_t the gradient in y_t, all told,

    g_t = dL/dy_t + a_{t+1} h_{t+1},   h_t = g_t where y_t is above its floor, else 0
    dx_t = h_t,   da_t = h_t y_{t-1},   df_t = g_t - h_t
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def scan_torch(
    a: Tensor, x: Tensor, floor: Tensor | None, state: Tensor, starts: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See :func:`bouton.ops.scan.reference.scan_reference`; a and floor have three axes, each whole or of size 1."""
    results: tuple[Tensor, Tensor] = _Scan.apply(a, x, floor, state, starts, floor is not None or starts is not None)
    return results


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, a: Tensor, x: Tensor, floor: Tensor | None, state: Tensor, starts: Tensor | None, forgets: bool
    ) -> tuple[Tensor, Tensor]:
        """``forgets``: a factor 0 passes nothing on, not even what is infinite or not a number."""
        first = state if starts is None else state.masked_fill(starts[:, :1], 0.0)
        x = torch.cat(((a[:, 0] * first + x[:, 0]).unsqueeze(1), x[:, 1:]), dim=1)
        y = _prefixes(_forgetting(a, starts), x, floor, None, _times if forgets else torch.mul)
        ctx.save_for_backward(a, floor, state, starts, y)
        return y, y[:, -1].clone()

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor, grad_last: Tensor) -> tuple[Tensor | None, ...]:
        a, floor, state, starts, y = ctx.saved_tensors
        need_a, _, need_floor, *_ = ctx.needs_input_grad
        keep = _forgetting(a, starts)
        above = None if floor is None else y > floor
        if above is not None:
            keep = torch.where(above, keep, 0.0)
        grad = torch.cat((grad_y[:, :-1], (grad_y[:, -1] + grad_last).unsqueeze(1)), dim=1)
        # In reversed time the factor of the step to t is that of token t + 1; the first one is never used.
        factor = keep if keep.shape[1] == 1 else keep.flip(1).roll(1, 1)
        # By the function itself, so that it can be differentiated again.
        grad = _Scan.apply(factor, grad.flip(1), None, torch.zeros_like(state), None, keep is not a)[0].flip(1)

        into = grad if above is None else torch.where(above, grad, 0.0)
        grad_a = grad_floor = None
        if need_a:
            before = torch.cat((state.unsqueeze(1), y[:, :-1]), dim=1)
            if starts is not None:
                before = before.masked_fill(starts.unsqueeze(2), 0.0)
            grad_a = (into * before).sum_to_size(a.shape)
        if need_floor and above is not None and floor is not None:
            grad_floor = torch.where(above, 0.0, grad).sum_to_size(floor.shape)
        grad_state = a[:, 0] * into[:, 0]
        if starts is not None:
            grad_state = grad_state.masked_fill(starts[:, :1], 0.0)
        return grad_a, into, grad_floor, grad_state, None, None


def _forgetting(a: Tensor, starts: Tensor | None) -> Tensor:
    """``a``, and 0 at the first token of a document."""
    return a if starts is None else a.masked_fill(starts.unsqueeze(2), 0.0)


def _prefixes(
    w: Tensor, x: Tensor, low: Tensor | None, high: Tensor | None, times: Callable[[Tensor, Any], Tensor]
) -> Tensor:
    """What the maps y -> min(max(w y + x, low), high) of the tokens 0, ..., t, one after another, make of 0, for all t.

    x (B, T, N); w and the bounds may have size 1 on any axis; ``times`` multiplies a factor of y.
    """
    tokens = x.shape[1]
    if tokens == 1:
        return _bounded(x, low, high)
    half = tokens // 2
    w_0, w_1 = _every_other(w, 0, half), _every_other(w, 1, half)
    x_0, x_1 = _every_other(x, 0, half), _every_other(x, 1, half)
    w_2, x_2 = w_0 * w_1, times(w_1, x_0) + x_1
    low_2 = high_2 = None
    if low is not None:
        low_1, high_1 = _every_other(low, 1, half), _every_other(high, 1, half)
        low_2 = times(w_1, _every_other(low, 0, half)) + x_1
        high_0 = _every_other(high, 0, half)
        high_2 = times(w_1, torch.inf if high_0 is None else high_0) + x_1
        low_2, high_2 = torch.minimum(low_2, high_2), torch.maximum(low_2, high_2)
        low_2, high_2 = _bounded(low_2, low_1, high_1), _bounded(high_2, low_1, high_1)
    odd = _prefixes(w_2, x_2, low_2, high_2, times)

    rest = tokens - half - 1  # the even tokens behind the first
    even = times(_every_other(w, 2, rest), odd[:, :rest]) + _every_other(x, 2, rest)
    even = _bounded(even, _every_other(low, 2, rest), _every_other(high, 2, rest))
    first = _bounded(x[:, :1], _every_other(low, 0, 1), _every_other(high, 0, 1))
    even = torch.cat((first, even), dim=1)
    pairs = torch.stack((even[:, :half], odd), dim=2).flatten(1, 2)
    return pairs if tokens % 2 == 0 else torch.cat((pairs, even[:, half:]), dim=1)


def _every_other(x: Any, first: int, count: int) -> Any:
    """``count`` tokens of x (or None) from ``first`` in steps of two; what holds for all tokens stays as it is."""
    return x if x is None or x.shape[1] == 1 else x[:, first : first + 2 * count : 2]


def _times(w: Tensor, x: Any) -> Tensor:
    """w x, and 0 where w = 0: what is forgotten may be infinite or not a number."""
    return torch.where(w == 0, 0.0, w * x)


def _bounded(x: Tensor, low: Tensor | None, high: Tensor | None) -> Tensor:
    if low is not None:
        x = torch.maximum(x, low)
    return x if high is None else torch.minimum(x, high)
