"""The game itself: every position from the view of who moves, its moves, and the exact value of each.

A position is a row of nine cells, 0: empty, 1: mine, 2: the opponent's. After a move the board is seen from the other
side, so the same learner plays first and second.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

EMPTY, MINE, THEIRS = 0, 1, 2
LINES = np.array([[0, 1, 2], [3, 4, 5], [6, 7, 8], [0, 3, 6], [1, 4, 7], [2, 5, 8], [0, 4, 8], [2, 4, 6]])
POWERS = 3 ** np.arange(9)
GOES_ON, LOST, DRAWN = 0, 1, 2
NOWHERE = -1

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Game:
    """All positions that can come up.

    Attributes:
        boards: (positions, 9), sorted by their code in base 3; the empty board is the first.
        ends: (positions,) GOES_ON, LOST (the opponent has just made a line) or DRAWN.
        after: (positions, 9) the position after each move, as the opponent sees it; NOWHERE where there is none.
        values: (positions,) with best play of both: 1 won, 0 drawn, -1 lost.
        first: (positions,) bool: it is the first player's turn.
    """

    boards: Ints
    ends: Ints
    after: Ints
    values: Ints
    first: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.boards)

    @property
    def open(self) -> Ints:
        """The positions in which a move is possible."""
        return np.flatnonzero(self.ends == GOES_ON)

    def best(self) -> NDArray[np.bool_]:
        """(positions, 9): the moves that keep the value of the position."""
        found = np.where(self.after == NOWHERE, 2, self.values[self.after])
        kept: NDArray[np.bool_] = (self.after != NOWHERE) & (-found == self.values[:, None])
        return kept


def flip(boards: Ints) -> Ints:
    """The same boards seen from the other side."""
    return np.where(boards == EMPTY, EMPTY, 3 - boards)


def codes(boards: Ints) -> Ints:
    """(...,) one number for each board (..., 9)."""
    return boards @ POWERS


def outcome(boards: Ints) -> Ints:
    """(n,) what has happened on boards (n, 9) of which the opponent made the last move."""
    lost = (boards[:, LINES] == THEIRS).all(axis=2).any(axis=1)
    full = (boards != EMPTY).all(axis=1)
    return np.where(lost, LOST, np.where(full, DRAWN, GOES_ON))


def play(boards: Ints, moves: Ints) -> Ints:
    """The boards after a move of each, seen by the opponent."""
    after = boards.copy()
    after[np.arange(len(boards)), moves] = MINE
    return flip(after)


@cache
def game() -> Game:
    """Enumerate the game."""
    found = [np.zeros((1, 9), np.int64)]
    while len(layer := found[-1]):
        layer = layer[outcome(layer) == GOES_ON]
        at, moves = np.nonzero(layer == EMPTY)
        found.append(np.unique(play(layer[at], moves), axis=0))
    boards = np.concatenate(found)
    boards = boards[np.argsort(codes(boards))]
    ends = outcome(boards)
    known = codes(boards)
    after = np.full((len(boards), 9), NOWHERE)
    at, moves = np.nonzero((boards == EMPTY) & (ends == GOES_ON)[:, None])
    after[at, moves] = np.searchsorted(known, codes(play(boards[at], moves)))
    stones = (boards != EMPTY).sum(axis=1)
    values = np.where(ends == LOST, -1, 0)
    for count in range(8, -1, -1):
        here = np.flatnonzero((stones == count) & (ends == GOES_ON))
        values[here] = np.where(after[here] == NOWHERE, -2, -values[after[here]]).max(axis=1)
    return Game(boards, ends, after, values, stones % 2 == 0)


def results(policy: Floats, opponent: Floats, *, first: bool) -> dict[str, float]:
    """Exact probabilities that ``policy`` wins, loses and draws, by enumeration of all games.

    Args:
        policy, opponent: (positions, 9) probability of each move.
        first: ``policy`` moves first.
    """
    rules = game()
    reached = np.zeros(len(rules))
    reached[0] = 1.0
    stones = (rules.boards != EMPTY).sum(axis=1)
    for count in range(9):
        here = np.flatnonzero((stones == count) & (rules.ends == GOES_ON))
        mover = policy if (count % 2 == 0) == first else opponent
        share = reached[here, None] * mover[here]
        there = rules.after[here]
        np.add.at(reached, there[there != NOWHERE], share[there != NOWHERE])
    own_turn = rules.first == first
    lost, drawn = rules.ends == LOST, rules.ends == DRAWN
    return {
        "win": float(reached[lost & ~own_turn].sum()),
        "loss": float(reached[lost & own_turn].sum()),
        "draw": float(reached[drawn].sum()),
    }


def evenly(allowed: NDArray[np.bool_]) -> Floats:
    """(positions, 9) the same probability for each allowed move; rows without one are 0."""
    shares: Floats = allowed / np.maximum(allowed.sum(axis=1, keepdims=True), 1)
    return shares
