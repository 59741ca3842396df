"""Text-level bookkeeping of one generated row: complete characters only, and stop strings across token borders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from bouton.errors import ConfigError


class TokenDecoder(Protocol):
    """Turns tokens into text one by one, keeping back the bytes of a character that is not complete yet."""

    def push(self, token: int) -> str:
        """The text that this token completes, perhaps empty."""

    def flush(self) -> str:
        """What was kept back: nothing, or a replacement character for a character that was never completed."""


class RowText:
    """The text of one row as it grows.

    Text that may be the beginning of a stop string is held back until it is clear that it is not, so what has been
    handed out never has to be taken back. A stop string itself is never handed out.
    """

    def __init__(self, decoder: TokenDecoder, stop: Sequence[str] = ()) -> None:
        if any(not text for text in stop):
            raise ConfigError("stop = '' is not valid: a stop string needs at least one character")
        self._decoder = decoder
        self._stop = tuple(stop)
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Text that is certain after this token. ``stopped`` says whether a stop string was found."""
        return self._release(self._decoder.push(token))

    def finish(self) -> str:
        """The rest of the text, when the row ends for another reason than a stop string."""
        if self.stopped:
            return ""
        text = self._release(self._decoder.flush())
        if not self.stopped:
            text, self._held = text + self._held, ""
        return text

    def _release(self, new: str) -> str:
        self._held += new
        # The stop string that is complete first counts: the same one wherever the borders of the tokens lie.
        found = [(at + len(text), at) for text in self._stop if (at := self._held.find(text)) >= 0]
        if found:
            self.stopped = True
            text, self._held = self._held[: min(found)[1]], ""
            return text
        keep = max((_overlap(self._held, text) for text in self._stop), default=0)
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that is a proper beginning of ``stop``."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
