"""Spans of text and labels of tokens (Ramshaw and Marcus 1995): B begins an entity, I goes on with it, O is outside.

Label 0 is O; type k of the list has B at 1 + 2 k and I at 2 + 2 k.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bouton.data.tokenizers import Tokenizer


class Span(NamedTuple):
    """An entity: characters (or tokens) [begin, end) of this type."""

    begin: int
    end: int
    type: str


@dataclass(frozen=True)
class Document:
    """A text and its entities, in order and without overlaps.

    Attributes:
        group: what must not be divided between training and test (a template); "" where nothing says.
    """

    text: str
    spans: tuple[Span, ...]
    group: str = field(default="", compare=False)


def label_names(types: Sequence[str]) -> tuple[str, ...]:
    """The 2 n + 1 labels of n types."""
    return ("O", *(f"{prefix}-{name}" for name in types for prefix in "BI"))


def token_offsets(tokenizer: Tokenizer, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n + 1,) the byte at which each of n tokens begins, and the number of bytes."""
    return np.concatenate([[0], np.cumsum(tokenizer.token_bytes[tokens])]).astype(np.int64)


def label_tokens(document: Document, offsets: NDArray[np.int64], types: Sequence[str]) -> NDArray[np.int64]:
    """(n,) the label of each token: of the span with which it shares a byte, the first one of several.

    Spans of other types are outside.
    """
    labels = np.zeros(len(offsets) - 1, dtype=np.int64)
    numbers = {name: index for index, name in enumerate(types)}
    for begin, end, name in document.spans:
        if name not in numbers:
            continue
        head, inside = (
            len(document.text[:begin].encode(errors="replace")),
            len(document.text[begin:end].encode(errors="replace")),
        )
        first = int(np.searchsorted(offsets, head, side="right")) - 1
        last = int(np.searchsorted(offsets, head + inside, side="left"))
        if first > 0 and labels[first]:  # a token that holds the end of one span and the beginning of the next
            first += 1
        if first < last:
            labels[first] = 1 + 2 * numbers[name]
            labels[first + 1 : last] = 2 + 2 * numbers[name]
    return labels


def begins_entity(label: int, before: int) -> bool:
    """Whether an entity begins here: at B, and at an I that continues nothing of its type."""
    return label > 0 and (label % 2 == 1 or before not in (label, label - 1))


def decode_labels(labels: Sequence[int], types: Sequence[str]) -> list[Span]:
    """The entities of a sequence of labels, as spans of tokens. An I without its B begins an entity."""
    spans: list[Span] = []
    begin, before = -1, 0
    for index, label in enumerate([*labels, 0]):
        if begin >= 0 and (label == 0 or begins_entity(label, before)):
            spans.append(Span(begin, index, types[(before - 1) // 2]))
            begin = -1
        if begins_entity(label, before):
            begin = index
        before = label
    return spans


def text_spans(text: str, offsets: NDArray[np.int64], spans: Sequence[Span]) -> list[Span]:
    """Spans of tokens as spans of characters, without white space at their ends (a token of BPE begins with one)."""
    data = text.encode(errors="replace")
    found = []
    for first, last, name in spans:
        piece = data[offsets[first] : offsets[last]]
        begin = int(offsets[first]) + len(piece) - len(piece.lstrip())
        end = begin + len(piece.strip())
        if begin < end:
            at = len(data[:begin].decode(errors="ignore"))
            found.append(Span(at, at + len(data[begin:end].decode(errors="replace")), name))
    return found
