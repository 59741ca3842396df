"""The game against known counts, exact results against simulated ones, and what a graph learns of it."""

import numpy as np
import pytest

from bouton.domains.tictactoe.domain import prefer, rules_by_hand
from bouton.domains.tictactoe.game import DRAWN, GOES_ON, LOST, NOWHERE, evenly, game, results
from bouton.domains.tictactoe.learner import DRAW, LOSS, WIN, Learner, Planner
from bouton.domains.tictactoe.selfplay import play_games

pytest.importorskip("bouton_kernels")


def test_the_game_has_its_known_size() -> None:
    rules = game()
    assert len(rules) == 5478
    assert (rules.ends == LOST).sum() == 942 and (rules.ends == DRAWN).sum() == 16
    assert rules.values[0] == 0
    assert ((rules.after != NOWHERE).sum(axis=1)[rules.ends != GOES_ON] == 0).all()


def test_results_of_random_play_are_the_known_ones() -> None:
    rules = game()
    anything, best = evenly(rules.after != NOWHERE), evenly(rules.best())
    found = results(anything, anything, first=True)
    assert found == pytest.approx({"win": 0.584921, "loss": 0.288095, "draw": 0.126984}, abs=1e-6)
    for first in (True, False):
        assert results(best, best, first=first) == pytest.approx({"win": 0, "loss": 0, "draw": 1})
        assert results(best, anything, first=first)["loss"] == 0


def test_games_played_agree_with_the_enumeration() -> None:
    rules = game()
    anything = evenly(rules.after != NOWHERE)
    seen = play_games(anything, 4000, 0.0, np.random.default_rng(0))
    first = seen.outcomes[seen.seen == 0]  # of the empty board, for who begins
    assert len(first) == 4000
    for outcome, share in ((WIN, 0.585), (LOSS, 0.288), (DRAW, 0.127)):
        assert np.mean(first == outcome) == pytest.approx(share, abs=0.03)
    ended = rules.ends[seen.seen] != GOES_ON
    assert (seen.outcomes[ended] == np.where(rules.ends[seen.seen[ended]] == LOST, LOSS, DRAW)).all()
    assert (rules.after[seen.positions, seen.moves] != NOWHERE).all()


def test_rules_by_hand_win_then_block() -> None:
    rules = game()
    # Mine on 0 and 1, theirs on 3 and 4: 2 wins, 5 would block.
    board = np.array([1, 1, 0, 2, 2, 0, 0, 0, 0])
    at = int(np.flatnonzero((rules.boards == board).all(axis=1))[0])
    assert prefer(rules_by_hand(rules))[at].tolist() == [0, 0, 1, 0, 0, 0, 0, 0, 0]


def test_a_graph_learns_the_board_the_end_and_never_loses() -> None:
    rules = game()
    random = np.random.default_rng(0)
    learner = Learner()
    policy = best = evenly(rules.best())
    policy = evenly(rules.after != NOWHERE)
    before = Planner(learner, rules.boards).greedy(9)
    assert results(before, best, first=False)["draw"] < 0.5
    for _ in range(14):
        seen = play_games(policy, 500, 1.0, random)
        order = random.permutation(len(seen.positions))
        boards, moves = rules.boards[seen.positions[order]], seen.moves[order]
        after = boards.copy()
        after[np.arange(len(boards)), moves] = 1
        learner.learn_moves(boards, moves, after, 0.2)
        visits = random.permutation(seen.seen)
        learner.learn_ends(rules.boards[visits], rules.ends[visits], 0.02)
    at, moves = np.nonzero(rules.after != NOWHERE)
    after = rules.boards[at].copy()
    after[np.arange(len(at)), moves] = 1
    assert (learner.predict(rules.boards[at], moves) == after).all()
    assert np.mean(learner.ending(rules.boards) == rules.ends) > 0.999
    policy = Planner(learner, rules.boards).greedy(9)
    for first in (True, False):
        assert results(policy, best, first=first)["draw"] == pytest.approx(1.0)
