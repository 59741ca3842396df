"""What counting alone says: the most frequent word, n-grams, and a table of prompts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

Sentence = tuple[str, ...]


class Counts:
    """The next word by the longest context of up to ``order`` - 1 words that was seen; ties by what was seen first.

    ``order`` 1 says the most frequent word.
    """

    def __init__(self, sentences: Sequence[Sentence], order: int, prompt: int) -> None:
        self.order = order
        self.seen: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
        for words in sentences:
            for i in range(prompt, len(words)):
                for n in range(order):
                    self.seen[words[i - n : i]][words[i]] += 1

    def next(self, before: Sequence[str]) -> str:
        """The word that is said."""
        for n in range(self.order - 1, -1, -1):
            context = tuple(before[len(before) - n :])
            if context in self.seen:
                return self.seen[context].most_common(1)[0][0]
        raise ValueError("nothing was counted")

    def say(self, prompt: Sequence[str], length: int) -> list[str]:
        """Go on from a prompt."""
        words = list(prompt)
        while len(words) < length:
            words.append(self.next(words))
        return words[len(prompt) :]


def table(sentences: Sequence[Sentence], prompt: int) -> dict[Sentence, list[str]]:
    """What followed each prompt."""
    return {words[:prompt]: list(words[prompt:]) for words in sentences}
