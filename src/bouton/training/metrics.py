"""Metrics of next-token prediction, as sums that are reduced over ranks."""

from __future__ import annotations

import math
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
