"""ngrams: what counting predicts on the same tokens, and the model mixed with it.

Kneser-Ney n-grams are counted on the run's training tokens. The validation rows are halved: on the first half the share
of the model in the mixture is chosen, all numbers are those of the second half. Rows begin with fresh state for the
model; the n-grams see what is before them in the document.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from bouton.data.packing import IGNORED
from bouton.errors import EvaluationError
from bouton.evaluation.base import Result, Row, Task
from bouton.evaluation.intervals import ratio
from bouton.evaluation.kneser_ney import KneserNey
from bouton.evaluation.options import Params, integer
from bouton.evaluation.registry import register
from bouton.evaluation.subject import Subject

Floats = NDArray[np.float64]
SHARES = np.linspace(0.0, 1.0, 21)


@dataclass(frozen=True)
class NgramsOptions(Params):
    order: int = integer(4, "longest n-gram", low=1)
    max_tokens: int = integer(20_000_000, "training tokens that are counted at most", low=2)


@register
class Ngrams(Task):
    name = "ngrams"
    summary = "Kneser-Ney n-grams counted on the run's training tokens, beside the model and mixed with it"
    source = "Kneser and Ney 1995"
    Options = NgramsOptions
    headline: ClassVar = ("model", "unigram", "mixed", "share")

    def check(self, subject: Subject) -> None:
        subject.require_text(self.name)

    def measure(self, subject: Subject, options: NgramsOptions) -> Result:
        from bouton.data.store import open_store

        folder = subject.data.prepared.folder
        if folder is None or subject.store.spans is not None:
            raise EvaluationError(f"task ngrams needs plain documents, data={subject.run.config.data.name} has others")
        known = open_store(folder / "train")
        size = min(len(known), options.max_tokens)
        tokens = np.asarray(known.tokens[:size], np.int64)
        # A model per order: the lower orders inside of a longer one are for backing off, and predict worse alone.
        orders = range(1, options.order + 1)
        models = [KneserNey(tokens, known.documents, n, subject.model.vocab_size) for n in orders]
        counts = models[-1]
        rows = np.sort(subject.validation_rows)
        length = subject.seq_len
        keys = counts.keys(np.asarray(subject.store.tokens, np.int64), subject.store.documents)
        at = rows[:, None] * length + np.arange(length)  # the key of target t + 1 is number t
        exists = at < len(keys)
        wanted = keys[np.minimum(at, len(keys) - 1)].ravel()
        by_order = [model.probabilities(wanted)[-1].reshape(at.shape) for model in models]
        own, given = _model(subject, rows)
        valid = given & exists
        half = len(rows) // 2
        if not valid[:half].any() or not valid[half:].any():
            raise EvaluationError("task ngrams needs two rows of validation or more: raise data.val_tokens")
        losses = [_nats(s * own[:half] + (1 - s) * by_order[-1][:half], valid[:half]).sum() for s in SHARES]
        share = float(SHARES[int(np.argmin(losses))])
        methods = {"model": own, "mixed": share * own + (1 - share) * by_order[-1]}
        methods |= {f"kn{n}": p for n, p in enumerate(by_order, start=1) if n > 1}
        methods["unigram"] = _unigram(tokens, subject.model.vocab_size)[
            keys[np.minimum(at, len(keys) - 1)] % counts.base
        ]
        methods["uniform"] = np.full(own.shape, 1 / subject.model.vocab_size)
        result = Result(numbers={"share": share, "tokens": float(valid[half:].sum()), "counted": float(size)})
        table: list[Row] = []
        for name, p in methods.items():
            loss = ratio(_nats(p[half:], valid[half:]), valid[half:].sum(axis=1).astype(np.float64))
            result.put(name, loss.map(lambda x: float(np.exp(min(x, 700.0)))))
            table.append({"method": name, "loss": loss.value, "perplexity": result.numbers[name]})
        result.tables["ngrams"] = table
        result.figures["ngrams"] = _figure(table)
        return result


def _model(subject: Subject, rows: NDArray[np.int64]) -> tuple[Floats, NDArray[np.bool_]]:
    """(rows, length) probability that the model gives each target, and which are targets."""
    found, valid = [], []
    for batch in subject.batches(rows, "ngrams"):
        targets = batch["targets"]
        with subject.computing():
            logits, _ = subject.model(batch["tokens"], starts=batch["starts"])
            p = logits.float().log_softmax(-1).gather(-1, targets.clamp_min(0)[..., None])[..., 0].exp()
        found.append(p.double().cpu())
        valid.append((targets != IGNORED).cpu())
    return torch.cat(found).numpy(), torch.cat(valid).numpy()


def _nats(p: Floats, valid: NDArray[np.bool_]) -> Floats:
    """(rows,) summed -ln p."""
    nats: Floats = np.where(valid, -np.log(np.maximum(p, 1e-300)), 0.0).sum(axis=1)
    return nats


def _unigram(tokens: NDArray[np.integer[Any]], vocab_size: int) -> Floats:
    """Relative frequencies, of counts plus one."""
    counts = np.bincount(tokens, minlength=vocab_size) + 1.0
    frequencies: Floats = counts / counts.sum()
    return frequencies


def _figure(table: list[Row]) -> Figure:
    shown = sorted((row for row in table if row["method"] != "uniform"), key=lambda row: -float(row["perplexity"]))
    figure = Figure(figsize=(6, 0.5 + 0.32 * len(shown)), layout="constrained")
    axes = figure.subplots()
    names = [str(row["method"]) for row in shown]
    bars = axes.barh(names, [float(row["perplexity"]) for row in shown])
    for bar, name in zip(bars, names, strict=True):
        bar.set_color("C1" if name in ("model", "mixed") else "0.7")
    axes.bar_label(bars, fmt="%.1f", padding=2)
    axes.set(xlabel="perplexity", xscale="log")
    return figure
