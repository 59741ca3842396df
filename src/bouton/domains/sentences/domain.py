"""The twenty sentences as an experiment: said from memory, and held out in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bouton.domains.base import Domain, Outcome, Recorder, Row
from bouton.domains.sentences.corpus import PROMPT, SENTENCES, TAGS
from bouton.domains.sentences.counts import Counts, Sentence, table
from bouton.domains.sentences.speaker import Speaker
from bouton.mechanisms.parameters import Params, integer, real

Say = Callable[[Sentence], list[str]]
PARTS = 5
LENGTH = len(TAGS)
COLUMNS = ("from memory", "whole sentences", "held out")


@dataclass(frozen=True)
class SentencesSettings(Params):
    """The fields of ``conf/domain/sentences.yaml``."""

    epochs: int = integer(100, "times through the sentences", low=1)
    eta: float = real(0.2, "rate", low=0, low_open=True)
    splits: int = integer(5, "ways to draw the five parts, of which each is held out in turn", low=1)


class Sentences(Domain):
    """Columns: share of the words after the prompt that are right where all sentences were learned, share of sentences
    that are right as a whole, and share of words right in sentences that were held out (mean over parts and draws)."""

    name: ClassVar[str] = "sentences"
    Settings: ClassVar[type[Params]] = SentencesSettings
    settings: SentencesSettings

    def run(self, recorder: Recorder) -> Outcome:
        random = np.random.default_rng(self.seed)
        speaker = self._speaker(SENTENCES, random, recorder)
        methods = self._methods(SENTENCES, speaker)
        memory = {name: _right(say, SENTENCES) for name, say in methods.items()}
        held_out: dict[str, list[float]] = {name: [] for name in methods}
        tags = []
        for _ in recorder.track(range(self.settings.splits), "held-out parts"):
            for part in np.array_split(random.permutation(len(SENTENCES)), PARTS):
                hidden = [SENTENCES[i] for i in part]
                known = [words for words in SENTENCES if words not in hidden]
                learned = self._speaker(known, random)
                for name, say in self._methods(known, learned).items():
                    held_out[name].append(_right(say, hidden).mean())
                tags += [
                    learned.say(words[:PROMPT], TAGS[:PROMPT], LENGTH)[1] == list(TAGS[PROMPT:]) for words in hidden
                ]
        rows: list[Row] = []
        for name in methods:
            right = memory[name]
            numbers = (float(right.mean()), float(right.all(axis=1).mean()), float(np.mean(held_out[name])))
            rows.append({"method": name, **dict(zip(COLUMNS, numbers, strict=True))})
        facts: dict[str, float | int | str] = {
            "words": len(speaker.words),
            "sentences held out with all parts of speech right": float(np.mean(tags)),
            "standard error of the graph, held out": float(np.std(held_out["graph"]) / len(held_out["graph"]) ** 0.5),
        }
        return Outcome(1.0 - float(rows[0]["held out"]), rows, speaker.graph, facts)

    def _speaker(
        self, known: Sequence[Sentence], random: np.random.Generator, recorder: Recorder | None = None
    ) -> Speaker:
        speaker = Speaker(sorted({word for words in SENTENCES for word in words}), TAGS, LENGTH, seed=self.seed)
        for epoch in range(self.settings.epochs):
            order = [known[i] for i in random.permutation(len(known))]
            surprise = speaker.learn(order, TAGS, PROMPT, self.settings.eta)
            if recorder is not None:
                recorder.log(epoch + 1, surprise=surprise)
        return speaker

    def _methods(self, known: Sequence[Sentence], speaker: Speaker) -> dict[str, Say]:
        prompts = table(known, PROMPT)
        nothing = [""] * (LENGTH - PROMPT)
        methods: dict[str, Say] = {
            "graph": lambda words: speaker.say(words[:PROMPT], TAGS[:PROMPT], LENGTH)[0],
            "table of prompts": lambda words: prompts.get(words[:PROMPT], nothing),
        }
        for order in (1, 2, 3, 4):
            counts = Counts(known, order, PROMPT)
            name = "most frequent word" if order == 1 else f"counts of {order}-grams"
            methods[name] = lambda words, counts=counts: counts.say(words[:PROMPT], LENGTH)  # type: ignore[misc]
        return methods


def _right(say: Say, sentences: Sequence[Sentence]) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    """(sentences, words after the prompt): said right, going on from what was said."""
    return np.array([[a == b for a, b in zip(say(words), words[PROMPT:], strict=True)] for words in sentences])
