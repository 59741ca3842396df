"""Rows of several texts in proportions, cut into pieces of the length of a phase.

A row always has ``data.seq_len`` tokens. In a phase of length n it is T / n pieces, drawn from all over a text; each
begins with fresh state (``starts``), so that nothing is carried or attended across. Shapes and tokens per
step are therefore the same in all phases.

Sample s of phase p is a pure function of (seed, p, s) with exact proportions: every thousand samples contain each part
as often as its share says, in a pseudorandom order, and the i-th of them reads the pieces i P, ..., i P + P - 1 of that
part's own endless shuffled stream (P = T / n), in which every epoch visits every piece once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from bouton.data.packing import IGNORED, Batch
from bouton.data.sampler import key64, permute
from bouton.data.sentences import sentence_table
from bouton.data.store import TokenStore
from bouton.data.tokenizers import Tokenizer
from bouton.errors import DataError

BLOCK = 1000  # samples within which the proportions are exact
BEGINS = ("sentence", "anywhere")


@dataclass(frozen=True)
class Phase:
    """One phase of a curriculum.

    Attributes:
        length: tokens of a piece; divides the length of a row.
        begin: "sentence": pieces begin where sentences and documents begin, and are read as if a document began;
            "anywhere": the text is cut end to end, documents begin inside the pieces.
        weights: source -> share of the rows; they need not add up to one.
    """

    name: str
    length: int
    begin: str
    weights: Mapping[str, float]


class Pieces(Protocol):
    """A finite table of pieces of one text."""

    def __len__(self) -> int: ...

    def gather(self, index: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """(..., n + 1) tokens of these pieces and the one behind each, and (..., n) where a document begins."""
        ...


class _Windows:
    """Tokens at places of a store, and where documents begin among them."""

    def __init__(self, store: TokenStore, length: int) -> None:
        self._tokens = store.tokens
        self._documents = store.documents
        self._span = np.arange(length + 1)

    def _read(self, places: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        index = places[..., None] + self._span
        inner = index[..., :-1]
        # not where eot_id stands: a turn of a conversation may end with it
        nearest = np.minimum(np.searchsorted(self._documents, inner), len(self._documents) - 1)
        return np.asarray(self._tokens[index], dtype=np.int64), self._documents[nearest] == inner


class EndToEnd(_Windows):
    """Piece i is tokens [i n, i n + n)."""

    def __init__(self, store: TokenStore, length: int) -> None:
        super().__init__(store, length)
        self._length = length
        self._count = max(0, (len(store) - 1) // length)

    def __len__(self) -> int:
        return self._count

    def gather(self, index: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        return self._read(index * self._length)


class FromSentences(_Windows):
    """Piece i begins with ``eot_id`` and the i-th sentence."""

    def __init__(self, store: TokenStore, length: int, tokenizer: Tokenizer) -> None:
        super().__init__(store, length)
        self._eot_id = tokenizer.eot_id
        table = sentence_table(store, tokenizer)
        self._places = table[: np.searchsorted(table, len(store) - length, side="left")]

    def __len__(self) -> int:
        return len(self._places)

    def gather(self, index: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        tokens, starts = self._read(np.asarray(self._places[index]))
        tokens[..., 0], starts[..., 0] = self._eot_id, True
        return tokens, starts


def pieces_of_store(store: TokenStore, phase: Phase, tokenizer: Tokenizer, source: str) -> Pieces:
    """The pieces of a store for a phase.

    Raises:
        DataError: it is shorter than one piece.
    """
    pieces: Pieces
    if phase.begin == "sentence":
        pieces = FromSentences(store, phase.length, tokenizer)
    else:
        pieces = EndToEnd(store, phase.length)
    if not len(pieces):
        raise DataError(
            f"data.phases.{phase.name}: no piece of {phase.length} tokens in {store.folder.name} of the source "
            f"{source} ({len(store)} tokens); use more text or shorter pieces"
        )
    return pieces


@dataclass(frozen=True)
class Part:
    """Pieces of one text and one length, and how many of ``BLOCK`` rows are made of them."""

    pieces: Pieces
    length: int
    rows: int


class PhaseRows:
    """The endless stream of rows of one phase: row s for every s >= 0."""

    def __init__(self, parts: Sequence[Part], seq_len: int, *seed: int) -> None:
        """
        Args:
            parts: their ``rows`` add up to ``BLOCK``.
            seed: everything that decides the order, besides the sample.
        """
        self.seq_len = seq_len
        self._parts = list(parts)
        self._seed = key64(*seed)
        self._ends = np.cumsum([part.rows for part in parts])

    def gather(self, samples: NDArray[np.int64]) -> Batch:
        """The batch of these samples; -1 gives a filler, whose targets are all ignored."""
        real = samples >= 0
        block, slot = np.divmod(np.where(real, samples, 0).astype(np.uint64), np.uint64(BLOCK))
        place = permute(slot, BLOCK, key64(self._seed, block)).astype(np.int64)
        which = np.searchsorted(self._ends, place, side="right")
        shape = (len(samples), self.seq_len)
        tokens, targets = np.empty(shape, dtype=np.int64), np.empty(shape, dtype=np.int64)
        starts = np.empty(shape, dtype=np.bool_)
        for number, part in enumerate(self._parts):
            rows = np.flatnonzero(which == number)
            if not len(rows):
                continue
            nth = block[rows].astype(np.int64) * part.rows + place[rows] - (self._ends[number] - part.rows)
            count = self.seq_len // part.length
            window, begins = part.pieces.gather(self._shuffled(nth, count, number, len(part.pieces)))
            begins[..., 0] = True
            tokens[rows], targets[rows], starts[rows] = (
                a.reshape(len(rows), self.seq_len) for a in (window[..., :-1], window[..., 1:], begins)
            )
        targets[~real] = IGNORED
        return {
            "tokens": torch.from_numpy(tokens),
            "targets": torch.from_numpy(targets),
            "starts": torch.from_numpy(starts),
        }

    def _shuffled(self, nth: NDArray[np.int64], count: int, part: int, total: int) -> NDArray[np.int64]:
        """(rows, count) pieces that the ``nth`` rows of a part are made of."""
        stream = (nth[:, None] * count + np.arange(count)).astype(np.uint64).reshape(-1)
        epoch, position = np.divmod(stream, np.uint64(total))
        order = permute(position, total, key64(self._seed, part, epoch))
        return order.astype(np.int64).reshape(len(nth), count)


def shares(weights: Sequence[float], total: int) -> list[int]:
    """``total`` in whole parts proportional to ``weights`` (largest remainders), each > 0 where its weight is."""
    exact = np.asarray(weights, dtype=np.float64) / sum(weights) * total
    counts = np.maximum(np.floor(exact), np.asarray(weights) > 0).astype(np.int64)
    while (rest := total - int(counts.sum())) > 0:
        counts[np.argmax(exact - counts)] += 1
    while rest < 0:
        counts[np.argmax(counts)] -= 1
        rest += 1
    return [int(count) for count in counts]


def phase_parts(phases: Sequence[Phase], index: int, replay: float) -> list[tuple[Phase, str, int]]:
    """(phase, source, rows of ``BLOCK``) of everything that is trained on in a phase: its own sources and, with
    ``replay`` > 0, in that share of the rows the earlier phases, each equally often."""
    groups: list[tuple[Phase, float]] = [(phases[index], 1.0 - (replay if index else 0.0))]
    if replay > 0:
        groups += [(earlier, replay / index) for earlier in phases[:index]]
    entries = [
        (phase, source, share * weight / sum(phase.weights.values()))
        for phase, share in groups
        for source, weight in phase.weights.items()
        if weight > 0
    ]
    counts = shares([share for _, _, share in entries], BLOCK)
    return [(phase, source, count) for (phase, source, _), count in zip(entries, counts, strict=True)]
