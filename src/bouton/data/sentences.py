"""Where sentences begin in a token store: a table beside the tokens, made once, in constant memory.

A sentence ends with ``.``, ``!`` or ``?``, perhaps followed by closing quotes or brackets; the next one begins behind
white space. A line end ends a sentence as well. That is a rule of thumb ("Mr. Smith" begins one too), but it asks
nothing of the tokenizer except the bytes of its tokens.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from bouton.data.store import TokenStore
from bouton.data.tokenizers import Tokenizer
from bouton.errors import DataError
from bouton.files import write_atomically

_FILE = "sentences.bin"
_CHUNK = 1 << 22  # tokens at once
_LOOK_BACK = 64  # tokens before a chunk that may still belong to the gap before its first word

_CLOSING = rb"(?:[\"')\]]|\xe2\x80\x99|\xe2\x80\x9d)"  # ASCII, and the typographic single and double quote
_END = re.compile(rb"[.!?]" + _CLOSING + rb"*\s*\Z")
_ONLY_CLOSING = re.compile(rb"\s*" + _CLOSING + rb"+\s*\Z")


def sentence_table(store: TokenStore, tokenizer: Tokenizer) -> NDArray[np.int64]:
    """The places (N,) before every sentence, increasing: the document's ``eot_id`` or the last token before it.

    Memory-mapped from ``sentences.bin`` in the folder of the store, which is written now unless it is there; where the
    folder is read-only the table is made in memory.
    """
    path = store.folder / _FILE
    if not path.is_file():
        try:
            write_atomically(path, lambda file: _write(file, store, tokenizer))
        except OSError:
            return np.concatenate(list(_parts(store, tokenizer)))
    return _opened(path, store)


def _write(file: IO[bytes], store: TokenStore, tokenizer: Tokenizer) -> None:
    for part in _parts(store, tokenizer):
        file.write(part.astype("<i8").tobytes())


def _opened(path: Path, store: TokenStore) -> NDArray[np.int64]:
    size = path.stat().st_size
    if size % 8 or not size:
        raise DataError(f"{path} is corrupt ({size} bytes are no table): delete it and run again")
    table = np.memmap(path, dtype=np.dtype("<i8"), mode="r")
    if len(table) < len(store.documents) or table[-1] >= len(store):
        raise DataError(f"{path} is corrupt (it does not fit the tokens beside it): delete it and run again")
    return table


def _parts(store: TokenStore, tokenizer: Tokenizer) -> Any:
    signs = _Signs.of(tokenizer)
    documents = np.asarray(store.documents)
    for begin in range(0, len(store), _CHUNK):
        end = min(begin + _CHUNK, len(store))
        low = max(0, begin - _LOOK_BACK)
        # one token more: the table holds the place before a sentence
        ids = np.asarray(store.tokens[low : min(end + 1, len(store))], dtype=np.int64)
        before = np.append(_begins(ids, signs)[1:], False)
        inside = documents[np.searchsorted(documents, begin) : np.searchsorted(documents, end)]
        before[inside - low] = True
        yield np.flatnonzero(before[begin - low : end - low]) + begin


@dataclass(frozen=True)
class _Signs:
    """What each token id (V,) says about sentences."""

    blank: NDArray[np.bool_]  # white space alone
    led: NDArray[np.bool_]  # white space, then something
    newline: NDArray[np.bool_]  # a line ends in it
    end: NDArray[np.bool_]  # ends a sentence
    closing: NDArray[np.bool_]  # quotes and brackets behind the end
    special: NDArray[np.bool_]  # no text

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> _Signs:
        strings = [tokenizer.string(token) for token in range(tokenizer.vocab_size)]

        def flags(test: Any) -> NDArray[np.bool_]:
            return np.array([bool(string) and bool(test(string)) for string in strings], dtype=np.bool_)

        return cls(
            blank=flags(lambda s: not s.strip()),
            led=flags(lambda s: s[:1].isspace()),
            newline=flags(lambda s: b"\n" in s),
            end=flags(_END.search),
            closing=flags(_ONLY_CLOSING.match),
            special=~flags(lambda s: True),
        )


def _begins(ids: NDArray[np.int64], signs: _Signs) -> NDArray[np.bool_]:
    """(T,) bool: whether a sentence begins with this token."""
    place = np.arange(len(ids))
    blank = signs.blank[ids]
    previous = np.append(-1, np.maximum.accumulate(np.where(blank, -1, place))[:-1])  # the last token with ink
    known = previous >= 0
    q = np.maximum(previous, 0)
    ended = signs.end[ids[q]] | (signs.closing[ids[q]] & (q > 0) & signs.end[ids[np.maximum(q - 1, 0)]])
    gap = signs.led[ids] | np.append(False, blank[:-1])
    lines = np.cumsum(signs.newline[ids])
    new_line = lines > np.append(0, lines)[q]  # in the token with ink, between, or in the white space of this one
    word = ~(blank | signs.special[ids] | (signs.closing[ids] & ~gap))  # behind a gap a quote opens
    return np.asarray(word & known & ~signs.special[ids[q]] & ((gap & ended) | new_line))
