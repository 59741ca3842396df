"""What a graph learns of the game: how the board changes, when a game is over, and how games end from a position.

Nothing of the rules is in it but that a move goes to an empty cell. Active nodes are the contents of the nine cells,
all conjunctions of three of them (assemblies), and the move; answers are learned by softmax surprise from games played.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np

from bouton.domains.tictactoe.game import EMPTY, GOES_ON, NOWHERE, POWERS, Floats, Ints, evenly, flip
from bouton.domains.wiring import connect_all
from bouton.substrate import Graph, Readout

TRIPLES = np.array(list(combinations(range(9), 3)))  # (84, 3) cells
WIN, DRAW, LOSS = 0, 1, 2  # of who moves


class Learner:
    """A graph with a world model (``predicts``), a sense of the end (``ends``) and of the outcome (``value``).

    Args:
        seed: of the graph.
        threads: of the engine; changes no result.
    """

    def __init__(self, *, seed: int = 0, threads: int = 1) -> None:
        labels = [f"cell{c}={'.xo'[v]}" for c in range(9) for v in range(3)]
        labels += [f"move{c}" for c in range(9)]
        labels += [f"{a}{b}{c}={p:02d}" for a, b, c in TRIPLES for p in range(27)]
        first = len(labels)
        labels += [f"next{c}={'.xo'[v]}" for c in range(9) for v in range(3)]
        labels += ["goes on", "lost", "drawn", "will win", "will draw", "will lose"]
        self.graph = Graph(labels=labels, seed=seed)
        self.moves, self.triples = 27, 36
        self.cell = [Readout(self.graph, "predicts", first + 3 * c, 3, threads=threads) for c in range(9)]
        self.end = Readout(self.graph, "ends", first + 27, 3, threads=threads)
        self.outcome = Readout(self.graph, "value", first + 30, 3, threads=threads)
        connect_all(self.graph, "predicts", range(self.triples), range(first, first + 27))
        for relation, answers in (("ends", range(first + 27, first + 30)), ("value", range(first + 30, first + 33))):
            for sources in (range(self.moves), range(self.triples, first)):
                connect_all(self.graph, relation, sources, answers)

    # -- what is active ------------------------------------------------------------------------------------------

    def position(self, boards: Ints) -> Ints:
        """(n, 93) active nodes of boards (n, 9): cells and assemblies."""
        patterns = boards[:, TRIPLES] @ np.array([9, 3, 1])
        return np.concatenate([self._cells(boards), self.triples + 27 * np.arange(len(TRIPLES)) + patterns], axis=1)

    def action(self, boards: Ints, moves: Ints) -> Ints:
        """(n, 10) active nodes of a move on a board: cells and the move."""
        return np.concatenate([self._cells(boards), self.moves + moves[:, None]], axis=1)

    def _cells(self, boards: Ints) -> Ints:
        cells: Ints = 3 * np.arange(9) + boards
        return cells

    # -- answers -------------------------------------------------------------------------------------------------

    def predict(self, boards: Ints, moves: Ints) -> Ints:
        """(n, 9) the board after a move, as the mover sees it."""
        active = self.action(boards, moves)
        cells: Ints = np.stack([cell.scores(active).argmax(axis=1) for cell in self.cell], axis=1)
        return cells

    def ending(self, boards: Ints) -> Ints:
        """(n,) GOES_ON, LOST or DRAWN."""
        ends: Ints = self.end.scores(self.position(boards)).argmax(axis=1)
        return ends

    def value(self, boards: Ints) -> Floats:
        """(n,) expected result for who moves: P(win) - P(loss)."""
        scores = self.outcome.scores(self.position(boards)).astype(np.float64)
        p = np.exp(scores - scores.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        expected: Floats = p[:, WIN] - p[:, LOSS]
        return expected

    # -- learning ------------------------------------------------------------------------------------------------

    def learn_moves(self, boards: Ints, moves: Ints, after: Ints, eta: float) -> float:
        """Surprise at boards ``after`` a move (as the mover sees them); mean nats per cell before."""
        active = self.action(boards, moves)
        losses = [
            cell.learn(active, cell.first + after[:, c], eta=eta, bias_eta=eta).mean()
            for c, cell in enumerate(self.cell)
        ]
        return float(np.mean(losses))

    def learn_ends(self, boards: Ints, ends: Ints, eta: float) -> float:
        """Surprise at whether the game was over; mean nats before."""
        return float(self.end.learn(self.position(boards), self.end.first + ends, eta=eta, bias_eta=eta).mean())

    def learn_outcomes(self, boards: Ints, outcomes: Ints, eta: float) -> float:
        """Surprise at how the games ended for who was to move; mean nats before."""
        targets = self.outcome.first + outcomes
        return float(self.outcome.learn(self.position(boards), targets, eta=eta, bias_eta=eta).mean())


class Planner:
    """Looks ahead through what a learner believes; all positions are thought of at once.

    ``scores(depth)`` is (positions, 9), the expected result of each move, -inf where the cell is not empty: depth 1
    judges the board after the move, depth 2 also tries the replies, and so on. The boards are those that the world
    model predicts; where it predicts one that cannot be, the move counts as a draw.
    """

    def __init__(self, learner: Learner, boards: Ints) -> None:
        self.boards = boards
        at, moves = np.nonzero(boards == EMPTY)
        predicted = flip(learner.predict(boards[at], moves))
        known, found = boards @ POWERS, predicted @ POWERS
        index = np.searchsorted(known, found)
        real = known[np.minimum(index, len(known) - 1)] == found
        self.after = np.full(boards.shape, NOWHERE)
        self.after[at, moves] = np.where(real, index, NOWHERE)
        self.ends = learner.ending(boards)
        self.values = np.where(self.ends == GOES_ON, learner.value(boards), np.where(self.ends == 1, -1.0, 0.0))

    def scores(self, depth: int) -> Floats:
        """(positions, 9); depth from 1 on."""
        values, empty = self.values, self.boards == EMPTY
        for step in range(depth):
            moves = np.where(empty, np.where(self.after == NOWHERE, 0.0, -values[self.after]), -np.inf)
            if step + 1 < depth:
                best = moves.max(axis=1)
                values = np.where((self.ends == GOES_ON) & empty.any(axis=1), best, self.values)
        return moves

    def greedy(self, depth: int) -> Floats:
        """(positions, 9) probabilities: the best move, ties evenly."""
        scores = self.scores(depth)
        best = scores.max(axis=1, keepdims=True)
        return evenly((scores >= best - 1e-6) & np.isfinite(scores))
