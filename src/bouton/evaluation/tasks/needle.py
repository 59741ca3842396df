"""needle: what a pair of random words far back in the text does for its repetition at the end.

A language model that was never taught to answer questions is asked in the only way it knows: validation text, somewhere
in it a needle (a key and a value, each a few random tokens), and at the end the key once more. Scored is the value::

    <eot> text text K V text text text K -> V ?

``gain`` is the log-probability of a value token over the same text with another needle in that place (K' V');
``binding`` is that over a needle with the right value and another key (K' V), so it leaves out what the mere presence
of the value does and measures the association. Both in nats per token of the value; 0: the needle is lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bouton.errors import EvaluationError
from bouton.evaluation.base import Result, Row, Task, spread
from bouton.evaluation.intervals import mean, share
from bouton.evaluation.options import Params, integer, integers, reals
from bouton.evaluation.registry import register
from bouton.evaluation.scoring import score
from bouton.evaluation.subject import Subject

Array = NDArray[np.float64]
_ARMS = ("needle", "absent", "unbound")


@dataclass(frozen=True)
class NeedleOptions(Params):
    lengths: tuple[int, ...] | None = integers(
        None, "tokens from beginning to end; null: 1/4, 1/2, 1 and 2 rows of training", low=8
    )
    depths: tuple[float, ...] = reals(
        (0.0, 0.25, 0.5, 0.75, 1.0), "place of the needle: 0 at the beginning, 1 at the end", low=0, high=1
    )
    items: int = integer(32, "needles for each length and depth", low=2)
    key: int = integer(2, "tokens of the key", low=1)
    value: int = integer(2, "tokens of the value", low=1)
    seed: int = integer(0, "choice of needles and texts", low=0)


@register
class Needle(Task):
    name = "needle"
    summary = "log-probability gain of a random key-value pair repeated after up to L tokens, by length and depth"
    source = "induction: Olsson et al. 2022 (arXiv 2209.11895); needle in a haystack: Kamradt 2023"
    Options = NeedleOptions
    headline: ClassVar = ("gain", "binding", "hits", "hits_without")

    def check(self, subject: Subject) -> None:
        subject.require_text(self.name)

    def measure(self, subject: Subject, options: NeedleOptions) -> Result:
        lengths = _lengths(subject, options)
        items = _Items(subject, options, max(lengths))
        logprob = np.zeros((3, options.items, len(lengths), len(options.depths)))
        hits = np.zeros_like(logprob)
        for column in subject.track(range(len(lengths) * len(options.depths)), "needle"):
            i, j = divmod(column, len(options.depths))
            for arm, name in enumerate(_ARMS):
                contexts = items.contexts(lengths[i], options.depths[j], name)
                for begin in range(0, options.items, subject.batch_size):
                    part = slice(begin, begin + subject.batch_size)
                    with subject.computing():
                        scores = score(subject.model, contexts[part], items.values[part])
                    logprob[arm, part, i, j] = [s.logprob / options.value for s in scores]
                    hits[arm, part, i, j] = [s.hits / options.value for s in scores]
        return _summary(options, lengths, logprob, hits)


def _lengths(subject: Subject, options: NeedleOptions) -> list[int]:
    shortest = 1 + 2 * (options.key + options.value)
    row = subject.seq_len
    given = options.lengths
    lengths = sorted(set(given or (row // 4, row // 2, row, 2 * row)))
    limit = subject.position_limit
    if given:
        for length in lengths:
            if length < shortest:
                raise EvaluationError(f"needle.lengths = {length} is too short: two needles need {shortest} tokens")
            if limit is not None and length > limit:
                raise EvaluationError(
                    f"needle.lengths = {length} is too long: this body's learned positions end at {limit}"
                )
        return lengths
    fit = [length for length in lengths if length >= shortest and (limit is None or length <= limit)]
    if not fit:
        raise EvaluationError(f"needle needs rows of at least {shortest} tokens, this run has {row}")
    return fit


class _Items:
    """Needles and the texts that hide them; the same for all lengths and depths, which makes these comparable."""

    def __init__(self, subject: Subject, options: NeedleOptions, longest: int) -> None:
        self.eot = subject.tokenizer.eot_id
        text = np.asarray(subject.store.tokens[: max(1 << 20, 4 * longest)], dtype=np.int64)
        self.text = text[text != self.eot]  # one long text: the model is to look back over all of it
        if len(self.text) < longest:
            raise EvaluationError(
                f"needle needs {longest} tokens of validation text, this run has {len(self.text)}: use smaller "
                f"needle.lengths"
            )
        ids, counts = np.unique(self.text, return_counts=True)
        speakable = np.array([bool(subject.tokenizer.string(int(token))) for token in ids])  # specials are not
        ids = ids[(counts >= np.median(counts)) & speakable]
        size = options.key + options.value
        if len(ids) < 2 * size:
            raise EvaluationError(
                f"needle needs {2 * size} different tokens, this run's text has {len(ids)} common ones"
            )
        self.options, self.places, needles = options, [], []
        for index in range(options.items):
            generator = np.random.default_rng((options.seed, index))
            self.places.append(int(generator.integers(0, len(self.text) - longest + 1)))
            needles.append(generator.choice(ids, 2 * size, replace=False).tolist())
        k, v = options.key, options.value
        self.keys = [n[:k] for n in needles]
        self.values = [n[k : k + v] for n in needles]
        self.other_keys = [n[k + v : 2 * k + v] for n in needles]
        self.other_values = [n[2 * k + v :] for n in needles]

    def contexts(self, length: int, depth: float, arm: str) -> list[list[int]]:
        """The texts up to the second key; with the value after it each is ``length`` tokens long."""
        size = self.options.key + self.options.value
        hay = length - 1 - 2 * size
        before = round(depth * hay)
        result = []
        for i, place in enumerate(self.places):
            key = self.keys[i] if arm == "needle" else self.other_keys[i]
            value = self.other_values[i] if arm == "absent" else self.values[i]
            text = self.text[place : place + hay].tolist()
            result.append([self.eot, *text[:before], *key, *value, *text[before:], *self.keys[i]])
        return result


def _summary(options: NeedleOptions, lengths: list[int], logprob: Array, hits: Array) -> Result:
    result = Result()
    gain, binding = logprob[0] - logprob[1], logprob[0] - logprob[2]
    for name, values in (("gain", gain), ("binding", binding)):
        result.put(name, mean(values.mean((1, 2))))  # an item is the unit: its cells share needle and text
        for i, length in enumerate(lengths):
            result.put(f"{name}_{length}_tokens", mean(values[:, i].mean(1)))
    cells = hits.shape[2] * hits.shape[3]
    for name, arm in (("hits", 0), ("hits_without", 1)):
        result.put(name, share(hits[arm].sum((1, 2)), np.full(options.items, cells)))
    table: list[Row] = [
        {"length": length, "depth": depth, **spread("gain", mean(gain[:, i, j])),
         **spread("binding", mean(binding[:, i, j])), "hits": hits[0, :, i, j].mean()}
        for i, length in enumerate(lengths)
        for j, depth in enumerate(options.depths)
    ]  # fmt: skip
    result.tables["cells"] = table
    result.figures["heat_map"] = _draw(options, lengths, gain.mean(0), binding.mean(0))
    return result


def _draw(options: NeedleOptions, lengths: list[int], gain: Array, binding: Array) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    bound = max(float(np.abs(gain).max()), float(np.abs(binding).max()), 0.1)
    for axes, (title, values) in zip(figure.subplots(1, 2), (("gain", gain), ("binding", binding)), strict=True):
        plot: Any = axes
        image = plot.imshow(values.T, cmap="RdBu", vmin=-bound, vmax=bound, aspect="auto")
        for (j, i), value in np.ndenumerate(values.T):
            plot.text(i, j, f"{value:z.2f}", ha="center", va="center", fontsize=8)
        plot.set_xticks(range(len(lengths)), [str(length) for length in lengths])
        plot.set_yticks(range(len(options.depths)), [f"{depth:g}" for depth in options.depths])
        plot.set(xlabel="length (tokens)", ylabel="depth")
        plot.set_title(f"{title} (nats per token)", fontsize=10)
    figure.colorbar(image, ax=figure.axes)
    return figure
