"""recall: multi-query associative recall by the number of key-value pairs, for runs trained on data=mqar.

Rows are those of :mod:`bouton.data.mqar` with other numbers of pairs than in training and everything else equal; a row
grows where its length does not admit so many pairs. With the number of training these are the validation rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bouton.data.mqar import MQARRows
from bouton.data.packing import IGNORED
from bouton.errors import ConfigError, EvaluationError
from bouton.evaluation.base import Result, Row, Task, spread
from bouton.evaluation.intervals import proportion, share
from bouton.evaluation.options import Params, integer, integers
from bouton.evaluation.registry import register
from bouton.evaluation.subject import Subject


@dataclass(frozen=True)
class RecallOptions(Params):
    pairs: tuple[int, ...] | None = integers(
        None, "key-value pairs of a row; null: 1, 2, 4, ... to twice those of training", low=1
    )
    rows: int = integer(256, "rows for each number of pairs", low=2)


@register
class Recall(Task):
    name = "recall"
    summary = "multi-query associative recall by number of pairs (runs with data=mqar)"
    source = "Arora et al. 2024 (arXiv 2312.04927)"
    Options = RecallOptions

    def check(self, subject: Subject) -> None:
        name = subject.run.config.data.name
        if name != "mqar":
            raise EvaluationError(f"task recall needs a run that was trained on data=mqar, this one has data={name}")

    def measure(self, subject: Subject, options: RecallOptions) -> Result:
        config = subject.run.config.data
        result = Result()
        table: list[Row] = []
        answers = config.vocab_size - config.vocab_size // 2
        for pairs in options.pairs or _default_pairs(int(config.num_pairs), int(config.vocab_size)):
            length = max(subject.seq_len, 4 * pairs)
            if subject.position_limit is not None and length > subject.position_limit:
                result.notes.append(
                    f"{pairs} pairs need {length} tokens: this body's learned positions end at {subject.position_limit}"
                )
                continue
            try:
                rows = MQARRows(
                    num_pairs=pairs, vocab_size=config.vocab_size, seq_len=length, query_power=config.query_power,
                    random_fill=config.random_fill, seed=0, split=1, num_rows=options.rows,
                )  # fmt: skip
            except ConfigError as error:
                raise EvaluationError(f"recall.pairs = {pairs}: {error}") from None
            correct, count = _answers(subject, rows)
            accuracy = share(correct, count)
            whole = proportion(int((correct == count).sum()), len(count))
            table.append({"pairs": pairs, "seq_len": length, "chance": 1 / answers, **spread("accuracy", accuracy),
                          **spread("whole_rows", whole)})  # fmt: skip
            result.put(f"accuracy_{pairs}_pairs", accuracy)
            if pairs == config.num_pairs:
                result.put("accuracy", accuracy)
        result.tables["pairs"] = table
        result.numbers["chance"] = 1 / answers
        result.figures["pairs"] = _draw(table, int(config.num_pairs))
        return result


def _default_pairs(trained: int, vocab_size: int) -> list[int]:
    """Powers of two to twice those of training, as far as there are enough keys, and those of training."""
    most = vocab_size // 2 - 1
    doubled = {2**k for k in range(20) if 2**k <= 2 * trained}
    return sorted(pairs for pairs in doubled | {trained, 2 * trained} if pairs <= most)


def _answers(subject: Subject, rows: MQARRows) -> tuple[Any, Any]:
    """Right answers and questions of each row."""
    correct, count = [], []
    size = subject.batch_size
    for begin in subject.track(range(0, len(rows), size), "recall"):
        batch = rows.gather(np.arange(begin, min(begin + size, len(rows))))
        targets = batch["targets"]
        with subject.computing():
            logits, _ = subject.model(batch["tokens"].to(subject.device))
            right = (logits.argmax(-1).cpu() == targets) & (targets != IGNORED)
        correct.append(right.sum(1).numpy())
        count.append((targets != IGNORED).sum(1).numpy())
    return np.concatenate(correct), np.concatenate(count)


def _draw(table: list[Row], trained: int) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes: Any = figure.subplots()
    pairs = [r["pairs"] for r in table]
    low = [r["accuracy"] - r["accuracy_low"] for r in table]
    high = [r["accuracy_high"] - r["accuracy"] for r in table]
    axes.errorbar(pairs, [r["accuracy"] for r in table], [low, high], fmt="o-", markersize=4, label="accuracy")
    axes.plot(pairs, [r["chance"] for r in table], color="grey", linestyle="--", label="chance")
    axes.axvline(trained, color="grey", linewidth=0.8, label="pairs in training")
    axes.set_xscale("log", base=2)
    axes.set(xlabel="key-value pairs", ylabel="accuracy", ylim=(-0.02, 1.02))
    axes.legend(fontsize=8, frameon=False)
    return figure
