"""The definition of the first-order recurrences, token by token and differentiated by autograd (use float64).

    y_t = a_t y_{t-1} + x_t                 affine
    y_t = max(a_t y_{t-1} + x_t, f_t)       max-affine

At a tie the floor is taken: f_t receives the gradient, the affine branch none. (torch.maximum would share it.) Before a
token that starts a document y is 0, whatever it was.
"""

from __future__ import annotations

import torch
from torch import Tensor


def step(a: Tensor, x: Tensor, floor: Tensor | None, state: Tensor, start: Tensor | None) -> Tensor:
    """One token: a, x, floor and state (B, N) or broadcastable to it, ``start`` (B, 1) bool; returns y (B, N)."""
    if start is not None:
        state = state.masked_fill(start, 0.0)
    y = a * state + x
    # In this order what is not a number stays one.
    return y if floor is None else torch.where(y <= floor, floor, y)


def scan_reference(
    a: Tensor, x: Tensor, floor: Tensor | None, state: Tensor, starts: Tensor | None
) -> tuple[Tensor, Tensor]:
    """y (B, T, N) and its last row; a and floor broadcastable to x (B, T, N), state (B, N), starts (B, T) bool."""
    a = a.expand_as(x)
    floor = None if floor is None else floor.expand_as(x)
    rows = []
    for t in range(x.shape[1]):
        start = None if starts is None else starts[:, t, None]
        state = step(a[:, t], x[:, t], None if floor is None else floor[:, t], state, start)
        rows.append(state)
    return torch.stack(rows, dim=1) if rows else x.clone(), state
