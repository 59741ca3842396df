"""perplexity: loss, perplexity and bits per byte on the run's validation rows, with fresh and with carried state.

``loss`` and the rest are what training validated with: every row begins with fresh state, so its first tokens are
predicted from little context. ``carried_*`` are about the same target tokens, but each row is read after what precedes
it in its document, the state carried over the border between the rows (``context`` rows of it at most).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from bouton.data.packing import IGNORED
from bouton.errors import BoutonError, EvaluationError
from bouton.evaluation.base import Result, Task
from bouton.evaluation.intervals import Estimate, ratio, share
from bouton.evaluation.options import Params, integer
from bouton.evaluation.registry import register
from bouton.evaluation.scoring import token_nll
from bouton.evaluation.subject import Subject

Array = NDArray[np.float64]
_AGREES = 2e-3  # relative; between precisions and machines, not between models


@dataclass(frozen=True)
class PerplexityOptions(Params):
    context: int = integer(4, "earlier tokens of the document that a row may see, in rows; 0: fresh state only", low=0)


@register
class Perplexity(Task):
    name = "perplexity"
    summary = "loss, perplexity, bits per byte and accuracy on the validation rows; fresh and carried state"
    Options = PerplexityOptions
    headline: ClassVar = ("loss", "perplexity", "bits_per_byte", "accuracy", "carried_bits_per_byte")

    def check(self, subject: Subject) -> None:
        if subject.model.num_labels is not None:
            raise EvaluationError(
                "task perplexity needs a run that predicts tokens, this one labels them: use task ner"
            )

    def measure(self, subject: Subject, options: PerplexityOptions) -> Result:
        result = Result()
        rows = subject.validation_rows
        sums = _windows(subject, rows)
        nll, correct, count, size = sums.T
        loss = ratio(nll, count)
        result.put("loss", loss)
        result.put("perplexity", loss.map(_exp))
        if size.sum() > 0:
            result.put("bits_per_byte", _bits(nll, size))
        result.put("accuracy", share(correct, count))
        result.numbers.update(rows=len(rows), tokens=count.sum(), bytes=size.sum())
        _compare(subject, loss.value, result)
        if options.context and subject.is_text:
            if subject.position_limit is not None:
                result.notes.append("carried state was not measured: this body has learned positions, which end")
            else:
                carried, context = _carried(subject, rows, options.context)
                result.put("carried_loss", ratio(carried, count))
                result.put("carried_perplexity", ratio(carried, count).map(_exp))
                result.put("carried_bits_per_byte", _bits(carried, size))
                result.put("carried_gain", ratio(nll - carried, count))
                result.numbers["carried_context"] = context
        return result


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def _bits(nll: Array, size: Array) -> Estimate:
    """Bits per byte from nats and bytes of each row."""
    return ratio(nll / math.log(2), size)


def _windows(subject: Subject, rows: NDArray[np.int64]) -> Array:
    """(rows, 4): nats, correct predictions, targets and bytes of each row, read with fresh state."""
    token_bytes = torch.as_tensor(subject.tokenizer.token_bytes, device=subject.device)
    sums = []
    for batch in subject.batches(rows, "perplexity"):
        targets = batch["targets"]
        valid = targets != IGNORED
        with subject.computing():
            logits, _ = subject.model(batch["tokens"], starts=batch["starts"])
            columns = (
                token_nll(logits, targets).double(),
                (logits.argmax(-1) == targets) & valid,
                valid,
                token_bytes[targets.clamp_min(0)] * valid,
            )
            sums.append(torch.stack([column.sum(1).double() for column in columns], 1).cpu())
    return torch.cat(sums).numpy()


def _carried(subject: Subject, rows: NDArray[np.int64], limit: int) -> tuple[Array, float]:
    """Nats of each row after what precedes it in its document, and the mean number of tokens that precede."""
    store, length = subject.store, subject.seq_len
    begins = rows * length
    document = np.asarray(store.documents[np.searchsorted(store.documents, begins, side="right") - 1])
    first = np.maximum(document, begins - limit * length)
    order = np.argsort(begins - first, kind="stable")  # rows of like context share a batch
    nll = np.zeros(len(rows))
    chunks = range(0, len(rows), subject.batch_size)
    for begin in subject.track(chunks, "perplexity, carried state"):
        chosen = order[begin : begin + subject.batch_size]
        nll[chosen] = _after_context(subject, rows[chosen], first[chosen])
    return nll, float(np.mean(begins - first))


def _after_context(subject: Subject, rows: NDArray[np.int64], first: NDArray[np.int64]) -> Array:
    """Nats (B,) of the rows, each read after the tokens from ``first`` on, in chunks of one row."""
    length = subject.seq_len
    begins = rows * length
    context = begins - first
    batch = {name: t.to(subject.device) for name, t in subject.rows.gather(rows).items()}
    padded = -(-int(context.max()) // length) * length
    tokens = np.full((len(rows), padded), subject.tokenizer.eot_id, dtype=np.int64)
    starts = np.zeros((len(rows), padded), dtype=np.bool_)
    for i, size in enumerate(context):
        if size:  # the padding on the left is a document of its own
            tokens[i, padded - size :] = subject.store.tokens[first[i] : begins[i]]
            starts[i, padded - size] = True
    # A row without context begins fresh.
    batch["starts"][:, 0] |= torch.as_tensor(context == 0, device=subject.device)
    state: Any = None
    with subject.computing():
        for at in range(0, padded, length):
            part = (torch.as_tensor(x[:, at : at + length], device=subject.device) for x in (tokens, starts))
            _, state = subject.model(next(part), state, starts=next(part))
        logits, _ = subject.model(batch["tokens"], state, starts=batch["starts"])
        nll = token_nll(logits, batch["targets"]).double().sum(1).cpu().numpy()
    return np.asarray(nll)


def _compare(subject: Subject, loss: float, result: Result) -> None:
    """Say whether this is the loss that training wrote down for this checkpoint."""
    part = {"best": "best", "last": "final"}.get(subject.run.checkpoint_name)
    try:
        trained = float(subject.run.summary[part]["val_loss"]) if part else None
    except (BoutonError, KeyError, TypeError):
        trained = None
    if trained is None:
        result.notes.append("the run's summary has no validation loss of this checkpoint to compare with")
        return
    result.numbers["loss_in_summary"] = trained
    if abs(loss - trained) > _AGREES * abs(trained) + 1e-6:
        result.notes.append(
            f"the loss is not that of the run's summary ({trained:.5f}): other data, precision or checkpoint"
        )
