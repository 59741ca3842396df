"""The definition of lateral inhibition: a loop over tokens and their neighbours, one document at a time."""

from __future__ import annotations

import torch
from torch import Tensor


def lateral_inhibition_reference(
    x: Tensor, strength: float, window: int, starts: Tensor | None = None, past: list[Tensor] | None = None
) -> tuple[Tensor, list[Tensor]]:
    """x_t - strength * mean of the at most ``window`` preceding vectors of its document (none: 0).

    Args:
        x: (B, H, T, D).
        strength: factor of the mean.
        window: number of neighbours.
        starts: (B, T) bool, True at the first token of a document.
        past: one (H, n, D) tensor per row: the untransformed vectors of the present document before ``x``.

    Returns:
        (B, H, T, D), and for each row the untransformed vectors of its last document, at most ``window``.
    """
    rows, remembered = [], []
    for b in range(x.shape[0]):
        neighbours = [] if past is None else list(past[b].unbind(1))
        row = []
        for t in range(x.shape[2]):
            if starts is not None and bool(starts[b, t]):
                neighbours = []
            neighbours = neighbours[-window:]
            inhibition = torch.stack(neighbours).mean(0) if neighbours else torch.zeros_like(x[b, :, t])
            row.append(x[b, :, t] - strength * inhibition)
            neighbours.append(x[b, :, t])
        rows.append(torch.stack(row, dim=1))
        remembered.append(torch.stack(neighbours[-window:], dim=1))
    return torch.stack(rows), remembered
