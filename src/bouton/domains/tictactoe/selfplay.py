"""Games against oneself, many side by side."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bouton.domains.tictactoe.game import DRAWN, GOES_ON, LOST, Floats, Ints, game
from bouton.domains.tictactoe.learner import DRAW, LOSS, WIN


@dataclass(frozen=True)
class Experience:
    """What was seen in some games.

    Attributes:
        positions, moves: (steps,) a position and the move that was made there.
        seen, outcomes: (visits,) every position, the last ones too, and how the game ended for who was to move.
    """

    positions: Ints
    moves: Ints
    seen: Ints
    outcomes: Ints


def play_games(policy: Floats, games: int, explore: float, random: np.random.Generator) -> Experience:
    """``games`` games in which both sides follow ``policy`` (positions, 9), with probability ``explore`` any move."""
    rules = game()
    at = np.zeros(games, np.int64)
    visited, moved = [at], []
    anything = (rules.after != -1) / np.maximum((rules.after != -1).sum(axis=1, keepdims=True), 1)
    mixed = (1 - explore) * policy + explore * anything
    while (going := rules.ends[at] == GOES_ON).any():
        chances = np.cumsum(mixed[at], axis=1)
        moves = (random.random((games, 1)) * chances[:, -1:] >= chances).sum(axis=1)
        moves = np.where(going, np.minimum(moves, 8), -1)
        at = np.where(going, rules.after[at, moves], at)
        moved.append(moves)
        visited.append(at)
    boards, moves = np.stack(visited, axis=1), np.stack(moved, axis=1)
    took_place = moves >= 0
    length = took_place.sum(axis=1)
    # The last position is one in which the mover has lost, or a draw; before it the sides take turns.
    steps = np.arange(boards.shape[1])
    turns = (length[:, None] - steps) % 2
    drawn = rules.ends[at] == DRAWN
    assert (drawn | (rules.ends[at] == LOST)).all()
    results = np.where(drawn[:, None], DRAW, np.where(turns == 0, LOSS, WIN))
    real = steps <= length[:, None]
    return Experience(boards[:, :-1][took_place], moves[took_place], boards[real], results[real])
