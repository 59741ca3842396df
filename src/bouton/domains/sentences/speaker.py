"""A graph that says how a sentence goes on: first the part of speech of the next word, then the word."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bouton.domains.wiring import connect_all
from bouton.substrate import Graph, Readout

Ints = NDArray[np.int64]
Sentence = tuple[str, ...]
ABSENT = -1
REACH = 3  # words back


class Speaker:
    """Active nodes are the last three words and their parts of speech, each at its distance, and the word's number.

    The next part of speech is an answer of its own; the one that is predicted is active when the word is asked for. A
    word that was never heard activates nothing, and nothing is said about its part of speech but what was predicted.

    Args:
        words, tags: what there is to say.
        length: words of a sentence.
    """

    def __init__(self, words: Sequence[str], tags: Sequence[str], length: int, *, seed: int = 0) -> None:
        self.words, self.tags = list(words), list(dict.fromkeys(tags))
        self.word_of = {word: i for i, word in enumerate(self.words)}
        self.tag_of = {tag: i for i, tag in enumerate(self.tags)}
        v, p = len(self.words), len(self.tags)
        labels = [f"{word}@{-k}" for k in range(1, REACH + 1) for word in self.words]
        labels += [f"{tag}@{-k}" for k in range(1, REACH + 1) for tag in self.tags]
        labels += [f"word {i}" for i in range(length)]
        labels += [f"expects {tag}" for tag in self.tags]
        self.at_tags, self.at_steps = REACH * v, REACH * (v + p)
        self.at_expected = self.at_steps + length
        first = self.at_expected + p
        self.graph = Graph(
            labels=[*labels, *(f"says {tag}" for tag in self.tags), *(f"says {w}" for w in self.words)], seed=seed
        )
        self.tag = Readout(self.graph, "expects", first, p)
        self.word = Readout(self.graph, "says", first + p, v)
        connect_all(self.graph, "expects", range(self.at_expected), range(first, first + p))
        connect_all(self.graph, "says", range(first), range(first + p, first + p + v))

    def context(self, before: Sequence[str], tags: Sequence[str]) -> list[int]:
        """The active nodes after some words with their tags, without the part of speech that is expected."""
        v, p = len(self.words), len(self.tags)
        active = [self.at_steps + len(before)]
        for k in range(1, REACH + 1):
            word = self.word_of.get(before[-k], ABSENT) if k <= len(before) else ABSENT
            tag = self.tag_of[tags[-k]] if k <= len(before) else ABSENT
            active.append((k - 1) * v + word if word != ABSENT else ABSENT)
            active.append(self.at_tags + (k - 1) * p + tag if tag != ABSENT else ABSENT)
        return active

    def learn(self, sentences: Sequence[Sentence], tags: Sequence[str], prompt: int, eta: float) -> float:
        """Once through the sentences; mean surprise at the words before, in nats."""
        active, expected, said = [], [], []
        for words in sentences:
            for i in range(prompt, len(words)):
                active.append(self.context(words[:i], tags[:i]))
                expected.append(self.tag_of[tags[i]])
                said.append(self.word_of[words[i]])
        contexts, answers = np.array(active), np.array(expected)
        self.tag.learn(contexts, self.tag.first + answers, eta=eta, bias_eta=eta, batch=16)
        contexts = np.concatenate([contexts, self.at_expected + answers[:, None]], axis=1)
        losses = self.word.learn(contexts, self.word.first + np.array(said), eta=eta, bias_eta=eta, batch=16)
        return float(losses.mean())

    def next(self, before: Sequence[str], tags: Sequence[str]) -> tuple[str, str]:
        """The part of speech that is expected, and the word."""
        context = self.context(before, tags)
        tag = int(self.tag.scores([context]).argmax())
        word = int(self.word.scores([[*context, self.at_expected + tag]]).argmax())
        return self.tags[tag], self.words[word]

    def say(self, prompt: Sequence[str], tags: Sequence[str], length: int) -> tuple[list[str], list[str]]:
        """Go on from a prompt with its tags, word by word from what was said; words and tags after the prompt."""
        words, known = list(prompt), list(tags)
        while len(words) < length:
            tag, word = self.next(words, known)
            words.append(word)
            known.append(tag)
        return words[len(prompt) :], known[len(prompt) :]
