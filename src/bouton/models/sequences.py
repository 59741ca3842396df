"""What every body asks of its tokens, and where they are in their documents."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bouton.models.sockets import State


def check_tokens(tokens: Tensor, state: State | None, starts: Tensor | None, samples: Tensor | None) -> None:
    """Shapes and types of the arguments of a body.

    Raises:
        ValueError: one does not fit.
    """
    if tokens.ndim != 2 or tokens.shape[1] == 0:
        raise ValueError(f"tokens must be (B, T) with T >= 1, got {tuple(tokens.shape)}")
    if tokens.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"tokens must be int64 or int32, got {str(tokens.dtype).removeprefix('torch.')}")
    if starts is not None and starts.shape != tokens.shape:
        raise ValueError(f"starts must have the shape of tokens, {tuple(tokens.shape)}, got {tuple(starts.shape)}")
    if samples is not None and samples.shape != tokens.shape[:1]:
        raise ValueError(f"samples must be one per row, ({tokens.shape[0]},), got {tuple(samples.shape)}")
    if state is not None and (rows := state["position"].shape[0]) != tokens.shape[0]:
        raise ValueError(f"state is of a batch of {rows}, but tokens has {tokens.shape[0]} rows: they must be equal")


def vectors_of(table: nn.Module, tokens: Tensor, vocab_size: int) -> Tensor:
    """The rows of an embedding table for tokens (B, T).

    Raises:
        ValueError: a token is not in the vocabulary.
    """
    try:
        vectors: Tensor = table(tokens)
        return vectors
    except IndexError:  # on a CPU, at no cost; a GPU checks inside its kernel
        low, high = int(tokens.min()), int(tokens.max())
        raise ValueError(
            f"tokens holds the id {low if low < 0 else high}, but this body's ids go from 0 to {vocab_size - 1} "
            f"(model.vocab_size = {vocab_size})"
        ) from None


def positions_of(tokens: Tensor, first: Tensor | None, starts: Tensor | None) -> Tensor:
    """Position of each token of (B, T) in its document; ``first`` (B,) is that of the first column, None: 0."""
    batch, length = tokens.shape
    index = torch.arange(length, device=tokens.device)
    if first is None:
        first = torch.zeros(batch, dtype=torch.int64, device=tokens.device)
    if starts is None:
        return first[:, None] + index
    latest = torch.where(starts, index, -1).cummax(dim=1).values
    return torch.where(latest >= 0, index - latest, first[:, None] + index)
