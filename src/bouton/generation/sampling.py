"""From logits to the next token: penalty, temperature, top-k, top-p, min-p, then one draw per row.

Every row has its own random stream, and a draw consumes one uniform number of it, so what is drawn for a row depends
on that row alone, whatever else is in the batch and on whatever device the logits are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bouton.errors import BoutonError
from bouton.mechanisms.parameters import Params, integer, real


@dataclass(frozen=True)
class Sampling(Params):
    """How the next token is chosen. The filters apply in the order in which they are listed here.

    Raises:
        ConfigError: a value out of range.
    """

    repetition_penalty: float = real(
        1.0, "factor against tokens already in the text (Keskar et al. 2019); 1: none", low=0, low_open=True
    )
    repetition_window: int = integer(0, "how far back the penalty looks; 0: over prompt and text", unit="tokens", low=0)
    temperature: float = real(0.8, "divides the logits; 0: always the most likely token", low=0)
    top_k: int = integer(50, "keep the k most likely tokens; 0: all", unit="tokens", low=0)
    top_p: float = real(
        1.0, "keep the fewest tokens of this total probability (Holtzman et al. 2020)", low=0, low_open=True, high=1
    )
    min_p: float = real(0.0, "keep tokens at least this likely, relative to the most likely one", low=0, high=1)


def row_generator(seed: int, tokens: Sequence[int], sample: int = 0) -> torch.Generator:
    """The random stream of the ``sample``-th continuation of a prompt; it depends on nothing but the arguments."""
    key = f"{seed}:{sample}:{','.join(map(str, tokens))}".encode()
    number = int.from_bytes(hashlib.sha256(key).digest()[:8], "little")
    return torch.Generator("cpu").manual_seed(number & (2**63 - 1))


def penalize(logits: Tensor, history: Tensor, penalty: float) -> Tensor:
    """Make tokens of the history less likely: positive logits are divided by the penalty, negative ones multiplied.

    Args:
        logits: (B, V) floating point.
        history: (B, L) int64 tokens seen so far, -1 = no token there. A token counts once, however often it occurred.
        penalty: > 1 discourages, < 1 encourages, 1 changes nothing.

    Returns:
        (B, V), a new tensor unless nothing changes.
    """
    if penalty == 1.0 or history.shape[1] == 0:
        return logits
    # A column more than there are tokens takes the marks of the empty places.
    seen = torch.zeros(logits.shape[0], logits.shape[1] + 1, dtype=torch.bool, device=logits.device)
    seen.scatter_(1, torch.where(history < 0, logits.shape[1], history), True)
    return torch.where(seen[:, :-1], torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def distribution(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """The filtered next-token distribution, most likely token first.

    Args:
        logits: (B, V), already penalised; the temperature must not be 0.

    Returns:
        probabilities (B, K), descending, rows sum to 1; tokens (B, K) int64 that they belong to. K = V, or top_k.
    """
    vocabulary = logits.shape[1]
    values = logits if logits.dtype == torch.float64 else logits.float()
    if 0 < sampling.top_k < vocabulary:
        values, tokens = values.topk(sampling.top_k, dim=-1)
    else:
        values, tokens = values.sort(dim=-1, descending=True, stable=True)
    # Subtracted first, so that a tiny temperature gives -inf for the others and never an overflow.
    probabilities = ((values - values[:, :1]) / sampling.temperature).softmax(dim=-1)
    keep = torch.ones_like(probabilities, dtype=torch.bool)
    if sampling.top_p < 1.0:
        keep &= probabilities.cumsum(dim=-1) - probabilities < sampling.top_p
    if sampling.min_p > 0.0:
        keep &= probabilities >= sampling.min_p * probabilities[:, :1]
    keep[:, 0] = True
    probabilities = probabilities * keep
    return probabilities / probabilities.sum(dim=-1, keepdim=True), tokens


def sample(
    logits: Tensor, sampling: Sampling, generators: Sequence[torch.Generator], history: Tensor | None = None
) -> Tensor:
    """The next token of every row.

    Args:
        logits: (B, V) in any floating type; computed with in float32 or better.
        generators: one CPU generator per row; each gives one uniform number, unless the temperature is 0.
        history: (B, L) int64, prompt and text so far, -1 = no token there; None: nothing to penalise.

    Returns:
        (B,) int64 on the device of the logits.

    Raises:
        BoutonError: a logit is NaN.
    """
    values = logits if logits.dtype == torch.float64 else logits.float()
    if bool(values.isnan().any()):
        raise BoutonError("logits are NaN: the model's weights or states are not finite")
    if history is not None:
        window = sampling.repetition_window
        recent = history[:, -window:] if window else history
        values = penalize(values, recent.to(values.device), sampling.repetition_penalty)
    if sampling.temperature == 0.0:
        return values.argmax(dim=-1)
    probabilities, tokens = distribution(values, sampling)
    uniform = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in generators])
    # Inverse of the cumulative distribution: the first rank whose cumulative probability exceeds the number drawn.
    cumulative = probabilities.cpu().double().cumsum(dim=-1)
    total = cumulative[:, -1]
    # Rounding must not lift the product to the total, beyond which there is no rank.
    point = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    ranks = torch.searchsorted(cumulative, point[:, None], right=True).to(tokens.device)
    return tokens.gather(1, ranks).squeeze(1)
