"""cloze: which of several words ends this sentence of a held-out document?

Items are made from the validation text, deterministically: the last word of a sentence against other words that end
sentences about as often (the same power of two), so that the frequency of the words tells nothing. The model chooses
the most likely word, read after the document up to there, each with the sentence's mark behind it so that a word does
not pass for the beginning of a longer one. ``accuracy_without_context`` is what it chooses without the document.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bouton.errors import EvaluationError
from bouton.evaluation.base import Result, Task
from bouton.evaluation.intervals import mean, proportion
from bouton.evaluation.options import Params, integer
from bouton.evaluation.registry import register
from bouton.evaluation.scoring import Score, score_all
from bouton.evaluation.subject import Subject

_LAST_WORD = re.compile(r"(?<=[a-z,;] )([a-z]{3,})([.!?])(?=\s|\"|$)")
_CONTEXT_WORDS = 8  # a sentence that comes earlier in its document has too little before it
_FEWEST = 20


@dataclass(frozen=True)
class ClozeOptions(Params):
    items: int = integer(300, "sentences, as few of one document as possible", low=_FEWEST)
    distractors: int = integer(3, "wrong words of each item", low=1)
    documents: int = integer(2000, "validation documents that are searched, at most", low=1)


@dataclass(frozen=True)
class Item:
    """One question: a document up to a sentence's last word, the words (the right one first), and the mark."""

    document: int
    context: str
    words: tuple[str, ...]
    mark: str


@register
class Cloze(Task):
    name = "cloze"
    summary = "choose the last word of held-out sentences among equally frequent ones, by likelihood"
    source = "Taylor 1953 (cloze procedure); choice by likelihood: Paperno et al. 2016 (arXiv 1606.06031)"
    Options = ClozeOptions
    headline: ClassVar = ("accuracy", "accuracy_without_context", "chance", "items")

    def check(self, subject: Subject) -> None:
        subject.require_text(self.name)

    def measure(self, subject: Subject, options: ClozeOptions) -> Result:
        store = subject.store
        count = min(options.documents, len(store.documents))
        numbers = (np.arange(count) * len(store.documents) // count).tolist()
        # A document is decoded without its first token, the end of the text before it.
        texts = {n: subject.tokenizer.decode(store.document(n)[1:].tolist()) for n in numbers}
        items = make_items(texts, options.items, options.distractors)
        if len(items) < _FEWEST:
            raise EvaluationError(
                f"task cloze: the validation text has {len(items)} sentences with a last word that "
                f"{options.distractors} other words match, fewer than {_FEWEST}"
            )
        scores = _score(subject, items, with_context=True)
        blind = _score(subject, items, with_context=False)
        right, per_byte, without = _right(scores), _right(scores, items), _right(blind)
        result = Result()
        result.put("accuracy", proportion(sum(right), len(items)))
        result.put("accuracy_per_byte", proportion(sum(per_byte), len(items)))
        result.put("accuracy_without_context", proportion(sum(without), len(items)))
        result.put("context_gain", mean(np.array(right, float) - np.array(without, float)))
        result.numbers.update(
            chance=1 / (1 + options.distractors), items=len(items), documents=len({item.document for item in items})
        )
        result.tables["examples"] = [
            {"context": item.context[-120:], "words": list(item.words), "right": bool(ok)}
            for item, ok in list(zip(items, right, strict=True))[:12]
        ]
        return result


def make_items(texts: dict[int, str], most: int, distractors: int) -> list[Item]:
    """Items in a fixed order that looks random: first one of every document, then second ones, and so on."""
    places = {n: list(_LAST_WORD.finditer(text)) for n, text in texts.items()}
    frequency = Counter(m[1] for found in places.values() for m in found)
    bands: dict[int, list[str]] = {}
    for word in sorted(frequency):
        bands.setdefault(frequency[word].bit_length(), []).append(word)
    ranked: list[tuple[int, int, Item]] = []
    for number, found in places.items():
        fit = [m for m in found if len(texts[number][: m.start()].split()) >= _CONTEXT_WORDS]
        fit.sort(key=lambda m: _key(number, m.start()))
        for rank, m in enumerate(fit):
            others = [word for word in bands[frequency[m[1]].bit_length()] if word != m[1]]
            if len(others) >= distractors:
                generator = np.random.default_rng(_key(number, m.start()))
                wrong = generator.choice(others, distractors, replace=False).tolist()
                item = Item(number, texts[number][: m.start()].rstrip(), (m[1], *wrong), m[2])
                ranked.append((rank, _key(number, m.start()), item))
    ranked.sort(key=lambda entry: entry[:2])
    return [item for _, _, item in ranked[:most]]


def _key(document: int, place: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{document}/{place}".encode(), digest_size=8).digest(), "little")


def _score(subject: Subject, items: Sequence[Item], *, with_context: bool) -> list[list[Score]]:
    """The scores of the words of each item."""
    tokenizer = subject.tokenizer
    contexts: list[list[int]] = []
    endings: list[list[int]] = []
    limit = subject.seq_len if subject.position_limit is None else min(subject.seq_len, subject.position_limit)
    for item in items:
        before = tokenizer.encode(item.context) if with_context else []
        for word in item.words:
            ending = tokenizer.encode(f" {word}{item.mark}")
            room = max(0, limit - len(ending))  # as much of the document as a training row would hold
            contexts.append([tokenizer.eot_id, *before[max(0, len(before) - room) :]])
            endings.append(ending)
    what = "cloze" if with_context else "cloze, without context"
    scores: list[Score] = []
    step = 16 * len(items[0].words)
    with subject.computing():
        for begin in subject.track(range(0, len(contexts), step), what):
            part = slice(begin, begin + step)
            scores += score_all(subject.model, contexts[part], endings[part], subject.batch_size)
    size = len(items[0].words)
    return [scores[i : i + size] for i in range(0, len(scores), size)]


def _right(scores: Sequence[Sequence[Score]], items: Sequence[Item] | None = None) -> list[int]:
    """1 where the first word is the most likely one (per byte, if the items are given), 0 elsewhere; a tie is 0."""
    result = []
    for i, row in enumerate(scores):
        lengths = [1] * len(row) if items is None else [len(word) + 2 for word in items[i].words]
        first, *others = (s.logprob / length for s, length in zip(row, lengths, strict=True))
        result.append(int(first > max(others)))
    return result
