"""Rows of fixed length from whole conversations: packed, never cut inside a turn unless a turn is longer than a row.

A row holds one conversation after the other, each with fresh state; what is left at the end is filled up. What is
longer than a row is split behind answers. Its later parts begin like conversations of their own, with ``eot_id`` in the
place of the token that ended the answer before, or with the system turn of their conversation, unless that takes more
than half a row. An exchange that is longer than what is left of a row loses its end, or is left out where no learned
token lies in the part that fits; how much is lost is said.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bouton.data.chat import ChatTemplate
from bouton.data.packing import IGNORED, Batch
from bouton.data.store import TokenStore

Ints = NDArray[np.int64]


class ChatRows:
    """The rows of a store of conversations. Which conversations share a row depends on their lengths alone.

    Needs a few int64 of memory per conversation.

    Attributes:
        pieces: (P, 2) int64, the stretches [begin, end) of the store that are in rows, in the order of the rows.
        systems: (P, 2) int64, what is read before a piece: ``eot_id`` and the system turn without its end, whose place
            is taken by the first token of the piece; empty for most.
        dropped: tokens that no row holds.
        note: one line on what the rows hold and what they lack.
    """

    def __init__(self, store: TokenStore, seq_len: int, template: ChatTemplate) -> None:
        """
        Args:
            store: with ``spans``.
            seq_len: tokens of a row.
            template: what the conversations were written with.
        """
        assert store.spans is not None
        self.seq_len = seq_len
        self._tokens = store.tokens
        self._spans = store.spans
        self._eot = int(store.meta["tokenizer"]["eot_id"])
        pieces, systems = _cut(store, seq_len, template)
        places = _lengths(pieces) - 1 + _lengths(systems)  # the last token of a piece is only a target
        row = _pack(places, seq_len)
        order = np.argsort(row, kind="stable")
        self.pieces, self.systems = pieces[order], systems[order]
        count = int(row.max()) + 1 if len(row) else 0
        self._first = np.searchsorted(row[order], np.arange(count + 1))  # row r has pieces [first[r], first[r + 1])
        kept, learned = int(_lengths(pieces).sum()), _learned(self._spans, pieces)
        shared = int((pieces[1:, 0] == pieces[:-1, 1] - 1).sum())  # between two parts of a conversation
        total_learned = int((self._spans[1::2] - self._spans[0::2]).sum())
        self.dropped = len(store) - (kept - shared)
        filled = float(places.sum()) / max(1, count * seq_len)
        self.note = (
            f"{len(store.documents)} conversations in {count} rows of {seq_len}, {filled:.1%} filled, "
            f"{learned} learned tokens"
        )
        if repeated := int((_lengths(systems) > 0).sum()):
            self.note += f"; {repeated} later parts of conversations repeat the system turn"
        if learned < total_learned or self.dropped:
            self.note += (
                f"; longer than a row: {self.dropped} of {len(store)} tokens and {total_learned - learned} of "
                f"{total_learned} learned ones are dropped (data.seq_len would have to be larger)"
            )

    def __len__(self) -> int:
        return len(self._first) - 1

    def gather(self, rows: Ints) -> Batch:
        """The batch of these rows; a row number of -1 gives a filler, whose targets are all ignored."""
        batch, length = len(rows), self.seq_len
        tokens = np.full((batch, length), self._eot, dtype=np.int64)
        targets = np.full((batch, length), IGNORED, dtype=np.int64)
        starts = np.zeros((batch, length), dtype=np.bool_)
        real = np.flatnonzero(rows >= 0)
        first, last = self._first[rows[real]], self._first[rows[real] + 1]
        chosen, slot = _ranges(first, last - first), np.repeat(real, last - first)
        stretches = np.stack([self.systems[chosen], self.pieces[chosen] - [0, 1]], axis=1)  # (N, 2, 2)
        places = _lengths(stretches).sum(1)
        ends = np.cumsum(places)
        offset = ends - places  # of each piece among the places of all
        row_offset = np.repeat(offset[np.cumsum(last - first) - (last - first)], last - first)
        column = _ranges(offset - row_offset, places)
        source = _ranges(stretches[..., 0].reshape(-1), _lengths(stretches).reshape(-1))
        row = np.repeat(slot, places)
        tokens[row, column] = self._tokens[source]
        learned = np.searchsorted(self._spans, source + 1, side="right") % 2 == 1
        targets[row[learned], column[learned]] = self._tokens[source[learned] + 1]
        tokens[slot, offset - row_offset] = self._eot
        starts[slot, offset - row_offset] = True
        filled = np.zeros(batch, dtype=np.int64)
        np.add.at(filled, slot, places)
        rest = np.flatnonzero(filled < length)
        starts[rest, filled[rest]] = True
        return {
            "tokens": torch.from_numpy(tokens),
            "targets": torch.from_numpy(targets),
            "starts": torch.from_numpy(starts),
        }


def _cut(store: TokenStore, seq_len: int, template: ChatTemplate) -> tuple[Ints, Ints]:
    """The pieces (P, 2) of all conversations, and what is read before them (P, 2); ``seq_len`` + 1 tokens at most."""
    begins = np.asarray(store.documents, dtype=np.int64)
    ends = np.append(begins[1:], len(store))
    short = ends - begins - 1 <= seq_len
    found = [np.stack([begins[short], ends[short]], axis=1)]
    before = [np.zeros_like(found[0])]
    spans: Any = store.spans
    for begin, end in zip(begins[~short], ends[~short], strict=True):
        low, high = np.searchsorted(spans, [begin, end], side="right")  # the last answer ends with the conversation
        system = _system_turn(store.tokens[begin : min(end, begin + seq_len // 2 + 1)], template)
        parts = _cut_one(int(begin), np.asarray(spans[low:high]).reshape(-1, 2), seq_len, system)
        found += parts
        before += [np.array([[begin, begin + system]]) * (part[0, 0] > begin) for part in parts]
    pieces, systems = np.concatenate(found), np.concatenate(before)
    order = np.argsort(pieces[:, 0], kind="stable")
    return pieces[order], systems[order]


def _system_turn(tokens: Any, template: ChatTemplate) -> int:
    """Tokens of the system turns with which a document begins: with its ``eot_id``, without their last; 0 if none."""
    tokens, header, turn = np.asarray(tokens), template.header("system"), 0
    ends = np.flatnonzero(tokens[1:] == template.end_id) + 1
    while tokens[turn + 1 : turn + 1 + len(header)].tolist() == header and (ends > turn).any():
        turn = int(ends[ends > turn][0])
    return turn


def _cut_one(begin: int, answers: Ints, seq_len: int, system: int) -> list[Ints]:
    """The pieces of one long conversation, whose answers (S, 2) are stretches of the store.

    Before all of them but the first there must be room for ``system`` tokens.
    """
    pieces: list[Ints] = []
    ends, first = answers[:, 1].tolist(), begin
    while begin < ends[-1] - 1:
        limit = begin + seq_len + 1 - (system if begin > first else 0)
        fitting = [end for end in ends if begin + 1 < end <= limit]
        if fitting:
            pieces.append(np.array([[begin, fitting[-1]]]))
            begin = fitting[-1] - 1
            continue
        answer = next(index for index, end in enumerate(ends) if end > limit)
        if answers[answer, 0] < limit:
            pieces.append(np.array([[begin, limit]]))
        begin = ends[answer] - 1
    return pieces


def _pack(places: Ints, capacity: int) -> Ints:
    """The row of each piece: the longest first, each into the fullest row that takes it (best fit decreasing)."""
    row = np.zeros(len(places), dtype=np.int64)
    open_rows: dict[int, list[int]] = {}  # room left -> rows
    rooms: list[int] = []  # its keys, sorted
    count = 0
    for index in np.argsort(-places, kind="stable").tolist():
        need = int(places[index])
        at = bisect_left(rooms, need)
        if at == len(rooms):
            room, chosen = capacity, count
            count += 1
        else:
            room = rooms[at]
            chosen = open_rows[room].pop()
            if not open_rows[room]:
                del open_rows[room], rooms[at]
        row[index] = chosen
        if (left := room - need) > 0:
            if left not in open_rows:
                open_rows[left] = []
                insort(rooms, left)
            open_rows[left].append(chosen)
    return row


def _learned(spans: Ints, pieces: Ints) -> int:
    """Targets with a loss in these pieces."""
    total = np.concatenate([[0], np.cumsum(spans[1::2] - spans[0::2])])

    def before(place: Ints) -> Ints:
        whole = np.searchsorted(spans[1::2], place, side="right")
        begins = np.append(spans[0::2], np.iinfo(np.int64).max)
        counted: Ints = total[whole] + np.maximum(0, place - begins[whole])
        return counted

    return int((before(pieces[:, 1]) - before(pieces[:, 0] + 1)).sum())


def _lengths(stretches: Ints) -> Ints:
    """Of stretches (..., 2): (...)."""
    lengths: Ints = stretches[..., 1] - stretches[..., 0]
    return lengths


def _ranges(begins: Ints, counts: Ints) -> Ints:
    """The ranges [begin, begin + count) one after the other."""
    shift = np.cumsum(counts) - counts
    places: Ints = np.arange(counts.sum(), dtype=np.int64) + np.repeat(begins - shift, counts)
    return places
