"""Tic-tac-toe as an experiment: a curriculum of random games, then games against oneself; judged by enumeration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from matplotlib.figure import Figure

from bouton.domains.base import Domain, Outcome, Recorder, Row
from bouton.domains.tictactoe.game import EMPTY, LINES, MINE, NOWHERE, THEIRS, Floats, Game, Ints, evenly, game, results
from bouton.domains.tictactoe.learner import Learner, Planner
from bouton.domains.tictactoe.selfplay import play_games
from bouton.errors import ConfigError
from bouton.mechanisms.parameters import Params, integer, real

DEPTHS = (1, 2, 3, 9)
AGAINST = ("draws as X", "draws as O", "loses as X to random", "loses as O to random", "beats random as X", "as O")


@dataclass(frozen=True)
class TicTacToeSettings(Params):
    """The fields of ``conf/domain/tictactoe.yaml``."""

    games: int = integer(500, "games of a round, side by side", low=1)
    random_rounds: int = integer(8, "rounds of random games", low=1)
    rounds: int = integer(80, "rounds in all", low=1)
    explore: float = real(0.3, "probability of a random move in the first third of the own games", low=0, high=1)
    explore_late: float = real(0.15, "the same afterwards", low=0, high=1)
    depth: int = integer(1, "moves that the planner looks ahead in games against oneself", unit="moves", low=1, high=9)
    eta_model: float = real(0.2, "rate of the world model", low=0, low_open=True)
    eta_ends: float = real(0.02, "rate of the sense of the end", low=0, low_open=True)
    eta_value: float = real(0.004, "rate of the sense of the outcome", low=0, low_open=True)

    def check(self) -> None:
        if self.random_rounds > self.rounds:
            raise ConfigError(
                f"domain.random_rounds = {self.random_rounds} is not valid: at most domain.rounds = {self.rounds}"
            )


class TicTacToe(Domain):
    """See the module; rows of the table are exact probabilities over all games."""

    name: ClassVar[str] = "tictactoe"
    Settings: ClassVar[type[Params]] = TicTacToeSettings
    settings: TicTacToeSettings

    def run(self, recorder: Recorder) -> Outcome:
        rules, s = game(), self.settings
        random = np.random.default_rng(self.seed)
        learner = Learner(seed=self.seed, threads=self.threads)
        best, anything = evenly(rules.best()), evenly(rules.after != NOWHERE)
        policy = anything
        late = s.random_rounds + (s.rounds - s.random_rounds) // 3
        for number in recorder.track(range(s.rounds), "rounds of games"):
            explore = 1.0 if number < s.random_rounds else s.explore if number < late else s.explore_late
            seen = play_games(policy, s.games, explore, random)
            order = random.permutation(len(seen.positions))
            positions, moves = seen.positions[order], seen.moves[order]
            numbers = {}
            if number < s.random_rounds:
                boards = rules.boards[positions]
                numbers["surprise_world"] = learner.learn_moves(boards, moves, placed(boards, moves), s.eta_model)
                visits = random.permutation(seen.seen)
                numbers["surprise_ends"] = learner.learn_ends(rules.boards[visits], rules.ends[visits], s.eta_ends)
            order = random.permutation(len(seen.seen))
            numbers["surprise_value"] = learner.learn_outcomes(
                rules.boards[seen.seen[order]], seen.outcomes[order], s.eta_value if number < late else s.eta_value / 2
            )
            planner = Planner(learner, rules.boards)
            policy = planner.greedy(s.depth)
            for depth in DEPTHS:
                drawn = [results(planner.greedy(depth), best, first=first)["draw"] for first in (True, False)]
                numbers |= {f"draws_x_depth{depth}": drawn[0], f"draws_o_depth{depth}": drawn[1]}
            recorder.log(number + 1, **numbers)

        end = f"looks {DEPTHS[-1]} moves ahead, to the end"
        table = [row(f"graph, {end}", planner.greedy(DEPTHS[-1]), best, anything)]
        for depth in DEPTHS[-2::-1]:
            ahead = f"{depth} move{'s' if depth > 1 else ''} ahead"
            table.append(row(f"graph, looks {ahead}", planner.greedy(depth), best, anything))
        by_hand = rules_by_hand(rules)
        value = planner.scores(1)
        table += [
            row("graph, 1 move ahead, and win or block by hand", prefer(by_hand, value), best, anything),
            row("random", anything, best, anything),
            row("centre, then corners", prefer(liked(rules)), best, anything),
            row("win or block by hand, else random", prefer(by_hand), best, anything),
            row("win or block by hand, else centre, corners", prefer(by_hand, liked(rules)), best, anything),
            row("best play, all ties", best, best, anything),
        ]
        at, moves = np.nonzero(rules.after != NOWHERE)
        boards = rules.boards[at]
        right = learner.predict(boards, moves) == placed(boards, moves)
        facts: dict[str, float | int | str] = {
            "world model, cells right": float(right.mean()),
            "world model, boards right": float(right.all(axis=1).mean()),
            "cells right if nothing changed": float((boards == placed(boards, moves)).mean()),
            "ends recognised": float((learner.ending(rules.boards) == rules.ends).mean()),
            "positions": len(rules),
            "games played": s.rounds * s.games,
        }
        least = min(float(table[0][column]) for column in AGAINST[:2])
        return Outcome(1.0 - least, table, learner.graph, facts, {"learning": curves(recorder)})


def placed(boards: Ints, moves: Ints) -> Ints:
    """The boards after the moves, as the mover sees them."""
    after = boards.copy()
    after[np.arange(len(boards)), moves] = MINE
    return after


def row(method: str, policy: Floats, best: Floats, anything: Floats) -> Row:
    """Exact results of a policy (positions, 9) against best play and against random play."""
    numbers = [results(policy, best, first=first)["draw"] for first in (True, False)]
    against_random = [results(policy, anything, first=first) for first in (True, False)]
    numbers += [found["loss"] for found in against_random] + [found["win"] for found in against_random]
    return {"method": method, **dict(zip(AGAINST, numbers, strict=True))}


def rules_by_hand(rules: Game) -> Floats:
    """(positions, 9): 2 for a move that wins at once, 1 for one that blocks such a move, else 0."""
    found = np.zeros(rules.boards.shape)
    for line in LINES:
        cells = rules.boards[:, line]
        for who, worth in ((THEIRS, 1.0), (MINE, 2.0)):
            ready = ((cells == who).sum(axis=1) == 2) & ((cells == EMPTY).sum(axis=1) == 1)
            gap = line[(cells == EMPTY).argmax(axis=1)]
            rows = np.flatnonzero(ready)
            found[rows, gap[rows]] = np.maximum(found[rows, gap[rows]], worth)
    return np.where(rules.after == NOWHERE, -np.inf, found)


def liked(rules: Game) -> Floats:
    """(positions, 9): the centre, then the corners."""
    worth = np.zeros(9)
    worth[[0, 2, 6, 8]], worth[4] = 1.0, 2.0
    return np.where(rules.after == NOWHERE, -np.inf, worth)


def prefer(first: Floats, then: Floats | None = None) -> Floats:
    """The moves with the highest score (positions, 9); among equals those that the second score puts first."""
    allowed = np.isfinite(first) & (first >= first.max(axis=1, keepdims=True))
    if then is not None:
        second = np.where(allowed, then, -np.inf)
        allowed &= second >= second.max(axis=1, keepdims=True) - 1e-6
    return evenly(allowed)


def curves(recorder: Recorder) -> Figure:
    """Draws against best play after each round."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    for axes, side, name in zip(figure.subplots(1, 2, sharey=True), "xo", ("first", "second"), strict=True):
        for depth in DEPTHS:
            axes.plot(
                [r["step"] for r in recorder.rows],
                [r[f"draws_{side}_depth{depth}"] for r in recorder.rows],
                label=f"{depth}",
            )
        axes.set(xlabel="rounds of games", title=f"draws against best play, moving {name}", ylim=(-0.02, 1.02))
    axes.legend(title="moves ahead", frameon=False)
    return figure
