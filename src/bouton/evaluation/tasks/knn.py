"""knn: the model mixed with what followed the most similar contexts of training.

A memory of training contexts, drawn at random, keeps for each the model's prediction p(. | context) and the token that
followed. A new context asks for the ``neighbours`` with the largest cosine between the roots of the two predictions
(their Bhattacharyya coefficient), and those vote with weights softmax(similarity / temperature). On the first half of
the validation rows the temperature and the share of the vote in the mixture are chosen, all numbers are those of the
second half.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bouton.data.packing import IGNORED
from bouton.errors import EvaluationError
from bouton.evaluation.base import Result, Task
from bouton.evaluation.intervals import ratio
from bouton.evaluation.options import Params, integer
from bouton.evaluation.registry import register
from bouton.evaluation.subject import Subject

TEMPERATURES = (0.01, 0.03, 0.1, 0.3)
SHARES = torch.linspace(0.0, 0.95, 20, dtype=torch.float64)
_ROWS_AT_ONCE = 8


@dataclass(frozen=True)
class KnnOptions(Params):
    memory: int = integer(10_000, "training contexts that are remembered", low=1)
    neighbours: int = integer(50, "contexts that vote", low=1)
    rows: int = integer(64, "validation rows, taken evenly", low=2)
    seed: int = integer(0, "which contexts are remembered", low=0)


@register
class Knn(Task):
    name = "knn"
    summary = "the model mixed with the tokens that followed the most similar training contexts"
    source = "Khandelwal et al. 2020 (kNN-LM)"
    Options = KnnOptions
    headline: ClassVar = ("model", "mixed", "share")

    def check(self, subject: Subject) -> None:
        subject.require_text(self.name)

    def measure(self, subject: Subject, options: KnnOptions) -> Result:
        keys, values = _remember(subject, options)
        chosen = np.sort(subject.validation_rows)
        chosen = chosen[np.linspace(0, len(chosen) - 1, min(options.rows, len(chosen))).astype(np.int64)]
        if len(chosen) < 2:
            raise EvaluationError("task knn needs two rows of validation or more: raise data.val_tokens")
        own, votes, row = [], [], []
        for begin in subject.track(range(0, len(chosen), _ROWS_AT_ONCE), "knn"):
            p, target, index = _contexts(subject, chosen[begin : begin + _ROWS_AT_ONCE])
            similarity, nearest = (p.sqrt() @ keys.T).topk(min(options.neighbours, len(keys)), dim=1)
            right = values[nearest] == target[:, None]
            votes.append(torch.stack([((similarity / t).softmax(1) * right).sum(1) for t in TEMPERATURES]).double())
            own.append(p.gather(1, target[:, None])[:, 0].double())
            row.append(index + begin)
        model, vote, number = torch.cat(own), torch.cat(votes, 1), torch.cat(row)
        first = number < len(chosen) // 2
        losses = torch.stack([-_mixed(s, model, vote)[:, first].log().sum(1) for s in SHARES])
        at = divmod(int(losses.argmin()), len(TEMPERATURES))
        share, temperature = float(SHARES[at[0]]), TEMPERATURES[at[1]]
        mixed = _mixed(SHARES[at[0]], model, vote)[at[1]]
        result = Result(numbers={"share": share, "temperature": temperature, "remembered": float(len(keys))})
        for name, p in (("model", model), ("mixed", mixed)):
            nats = torch.zeros(len(chosen), dtype=torch.float64).index_add_(0, number, -p.log())
            count = torch.zeros_like(nats).index_add_(0, number, torch.ones_like(p))
            half = len(chosen) // 2
            loss = ratio(nats[half:].numpy(), count[half:].numpy())
            result.put(name, loss.map(lambda x: math.exp(min(x, 700.0))))
        return result


def _mixed(share: Tensor, model: Tensor, vote: Tensor) -> Tensor:
    """(temperatures, contexts)"""
    return ((1 - share) * model + share * vote).clamp_min(1e-300)


def _remember(subject: Subject, options: KnnOptions) -> tuple[Tensor, Tensor]:
    """Roots of the predictions (memory, vocabulary), and what followed (memory,)."""
    draw = torch.Generator().manual_seed(options.seed)
    keys: list[Tensor] = []
    values: list[Tensor] = []
    step, held = 0, 0
    while held < options.memory:
        batch = subject.data.train_batch(step)
        tokens, targets = batch["tokens"], batch["targets"]
        with subject.computing():
            logits, _ = subject.model(tokens.to(subject.device), starts=batch["starts"].to(subject.device))
        valid = (targets != IGNORED).nonzero()
        # A tenth of a batch at a time: the memory is to come from many texts.
        size = max(1, min(len(valid) // 10, options.memory - held))
        picked = valid[torch.randperm(len(valid), generator=draw)[:size]]
        rows, columns = picked.unbind(1)
        keys.append(logits.cpu()[rows, columns].float().softmax(-1).sqrt())
        values.append(targets[rows, columns])
        step, held = step + 1, held + len(picked)
    return torch.cat(keys), torch.cat(values)


def _contexts(subject: Subject, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
    """Predictions (n, vocabulary), targets (n,), and which of the rows each is in (n,)."""
    batch = subject.rows.gather(rows)
    with subject.computing():
        logits, _ = subject.model(batch["tokens"].to(subject.device), starts=batch["starts"].to(subject.device))
    row, column = (batch["targets"] != IGNORED).nonzero().unbind(1)
    return logits.cpu()[row, column].float().softmax(-1), batch["targets"][row, column], row
