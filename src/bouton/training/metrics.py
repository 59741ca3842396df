"""Metrics of next-token prediction and of labels, as sums that are reduced over ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

IGNORED = -100  # target index without a loss


class TokenMetrics(Metric):
    """Loss (nats per target token), perplexity, bits per byte and accuracy over everything it was updated with.

    All four come from sums over target tokens, not from means of means, so that ragged batches, ranks and the number
    of batches do not change them.

    Args:
        token_bytes: (vocab_size,) integers, length in bytes of each token; 0 for special tokens, whose prediction
            costs bits but writes no bytes.
    """

    full_state_update = False
    nll: Tensor
    tokens: Tensor
    bytes: Tensor
    correct: Tensor

    def __init__(self, token_bytes: Tensor, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("nll", "tokens", "bytes", "correct"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.register_buffer("token_bytes", token_bytes.to(torch.int64), persistent=False)

    def update(self, nll: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Add one batch: ``nll`` the summed loss, ``logits`` (..., V), ``targets`` (...) with -100 where ignored."""
        valid = targets != IGNORED
        lengths = torch.as_tensor(self.token_bytes)[targets.clamp_min(0)]
        self.nll += nll.double()
        self.tokens += valid.sum()
        self.bytes += (lengths * valid).sum()
        self.correct += ((logits.argmax(-1) == targets) & valid).sum()

    def compute(self) -> dict[str, float]:
        """``loss``, ``perplexity``, ``bits_per_byte`` (nan where no target has bytes) and ``accuracy``."""
        tokens, length = float(self.tokens), float(self.bytes)
        loss = float(self.nll) / tokens if tokens else math.nan
        return {
            "loss": loss,
            "perplexity": math.exp(loss) if loss < 700 else math.inf,
            "bits_per_byte": float(self.nll) / math.log(2) / length if length else math.nan,
            "accuracy": float(self.correct) / tokens if tokens else math.nan,
        }


class LabelMetrics(TokenMetrics):
    """Loss and accuracy over labels, and precision, recall and F1 over entities: exact span and type.

    The micro average counts entities of all types (as CoNLL 2003 does), ``f1_<type>`` those of one type. An I label
    that continues nothing of its type begins an entity.

    Args:
        label_names: O, then B and I of each type.
    """

    counts: Tensor  # (3, types): found, predicted, true

    def __init__(self, label_names: Sequence[str], **kwargs: Any) -> None:
        super().__init__(torch.zeros(len(label_names), dtype=torch.int64), **kwargs)
        self.types = [name[2:] for name in label_names[1::2]]
        self.add_state("counts", torch.zeros(3, len(self.types), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, nll: Tensor, logits: Tensor, targets: Tensor) -> None:
        """As :meth:`TokenMetrics.update`, with labels for tokens; a row (T) is one text."""
        super().update(nll, logits, targets)
        self.counts += count_entities(logits.argmax(-1), targets, len(self.types))

    def compute(self) -> dict[str, float]:
        """``loss``, ``perplexity``, ``bits_per_byte`` (nan), ``accuracy``, ``precision``, ``recall``, ``f1`` and F1 per
        type (nan where neither text nor prediction has an entity)."""
        found, predicted, true = self.counts.double().tolist()
        return {
            **super().compute(),
            "precision": _ratio(sum(found), sum(predicted)),
            "recall": _ratio(sum(found), sum(true)),
            "f1": _ratio(2 * sum(found), sum(predicted) + sum(true)),
            **{f"f1_{t}": _ratio(2 * f, p + n) for t, f, p, n in zip(self.types, found, predicted, true, strict=True)},
        }


def count_entities(predicted: Tensor, targets: Tensor, types: int) -> Tensor:
    """(3, types) numbers of entities that were found, of those predicted and of the true ones.

    Args:
        predicted: (B, T) labels; where the target is -100 they count as outside.
        targets: (B, T) labels.
    """
    valid = targets != IGNORED
    kinds, begins, ends = zip(*(_entities(labels.where(valid, 0)) for labels in (predicted, targets)), strict=True)
    found = begins[0] & begins[1] & (kinds[0] == kinds[1]) & (ends[0] == ends[1])
    return torch.stack(
        [torch.bincount(k[b], minlength=types) for k, b in ((kinds[0], found), *zip(kinds, begins, strict=True))]
    )


def _entities(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """labels (B, T) -> the type at each place, whether an entity begins there, and the place behind its end."""
    length = labels.shape[1]
    before = torch.nn.functional.pad(labels, (1, 0))[:, :-1]
    inside, kinds = labels > 0, (labels - 1).clamp_min(0) // 2
    begins = inside & ((labels % 2 == 1) | ((before != labels) & (before != labels - 1)))
    breaks = torch.where(begins | ~inside, torch.arange(length, device=labels.device), length)
    # The first break behind each place.
    behind = torch.nn.functional.pad(breaks, (0, 1), value=length)[:, 1:]
    return kinds, begins, behind.flip(1).cummin(dim=1).values.flip(1)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
