"""Log-probabilities of given tokens: of rows, and of continuations after contexts of different length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bouton.data.packing import IGNORED
from bouton.models.body import Body
from bouton.models.sockets import State

# Logits of one pass have at most this many elements (256 MiB in float32).
ELEMENTS = 1 << 26


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """-log p of each target in nats, (B, T) float32 or better; 0 where the target is ignored. logits (B, T, V)."""
    if logits.dtype != torch.float64:
        logits = logits.float()
    return F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORED, reduction="none")


@dataclass(frozen=True)
class Score:
    """A continuation after its context.

    Attributes:
        logprob: its log-probability, in nats.
        greedy: whether each of its tokens is the most likely one.
        tokens: its length.
        hits: how many of its tokens are the most likely ones.
    """

    logprob: float
    greedy: bool
    tokens: int
    hits: int


def score(model: Body, contexts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> list[Score]:
    """Score ``continuations`` after their ``contexts`` (each at least one token long), as one batch.

    Rows of different length are padded on the right, where no token of the row sees the padding. A long batch is read
    in chunks with the model's state carried from one to the next.
    """
    device = next(model.parameters()).device
    rows = [[*context, *continuation] for context, continuation in zip(contexts, continuations, strict=True)]
    length = max(len(row) for row in rows) - 1
    tokens = torch.zeros(len(rows), length, dtype=torch.int64)
    targets = torch.full((len(rows), length), IGNORED, dtype=torch.int64)
    for i, (row, context) in enumerate(zip(rows, contexts, strict=True)):
        tokens[i, : len(row) - 1] = torch.tensor(row[:-1])
        targets[i, len(context) - 1 : len(row) - 1] = torch.tensor(row[len(context) :])
    tokens, targets = tokens.to(device), targets.to(device)
    chunk = max(1, ELEMENTS // (len(rows) * model.vocab_size))
    state: State | None = None
    nll = torch.zeros(len(rows), dtype=torch.float64, device=device)
    hits = torch.zeros(len(rows), dtype=torch.int64, device=device)
    with torch.inference_mode():
        for begin in range(0, length, chunk):
            logits, state = model(tokens[:, begin : begin + chunk], state)
            wanted = targets[:, begin : begin + chunk]
            nll += token_nll(logits, wanted).double().sum(1)
            hits += (logits.argmax(-1) == wanted).sum(1)
    return [
        Score(-value, hit == len(continuation), len(continuation), hit)
        for value, hit, continuation in zip(nll.tolist(), hits.tolist(), continuations, strict=True)
    ]


def score_all(
    model: Body, contexts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], batch_size: int = 32
) -> list[Score]:
    """:func:`score` in batches of rows of similar length; the order of the results is that of the arguments."""
    lengths = [len(context) + len(continuation) for context, continuation in zip(contexts, continuations, strict=True)]
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    results: dict[int, Score] = {}
    for begin in range(0, len(order), batch_size):
        chosen = order[begin : begin + batch_size]
        scores = score(model, [contexts[i] for i in chosen], [continuations[i] for i in chosen])
        results.update(zip(chosen, scores, strict=True))
    return [results[i] for i in range(len(lengths))]
