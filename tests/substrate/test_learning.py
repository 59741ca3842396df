"""The local rules against their definitions; growth, pruning, eligibility, modulator, replay, the log of changes."""

from __future__ import annotations

import numpy as np
import pytest

from bouton.substrate import (
    Graph,
    Replay,
    changes,
    definition,
    fade,
    forget,
    learn,
    modulate,
    prune,
    record_changes,
    reinforce,
    settle,
    spread,
)
from bouton.substrate.changes import RULES

from .graphs import Pair


def matrix(graph: Graph, relation: str) -> np.ndarray:
    sources, targets, weights = graph.edge_arrays(relation)
    w = np.zeros((len(graph), len(graph)))
    w[sources, targets] = weights
    return w


@pytest.mark.parametrize("rule", ["hebb", "oja"])
def test_three_factors_equal_the_definition(pair: Pair, rule: str) -> None:
    rng = np.random.default_rng(1)
    x, y = np.zeros(60), np.zeros(60)
    x[[3, 8, 20]], y[rng.choice(60, 30, replace=False)] = [1.0, 0.5, -0.25], rng.normal(size=30)
    modulate(pair.graph, -0.5)
    rate = 0.1 * (1 + pair.graph.engine.modulator) * 0.5
    expected = definition.three_factor(pair.relations[0][1], x, y, rate, rule=rule)
    before, behind = np.flatnonzero(x), np.flatnonzero(y)
    made = learn(
        pair.graph, "a", (before, x[before]), (behind, y[behind]), rule=rule, eta=0.1, reward=0.5, clip=(-9.0, 9.0)
    )
    assert made == 0 and np.allclose(matrix(pair.graph, "a"), expected, atol=1e-6)
    assert np.abs(expected - pair.relations[0][1]).max() > 0.01


def test_oja_bounds_the_weights_where_hebb_does_not() -> None:
    for rule, bounded in (("hebb", False), ("oja", True)):
        graph = Graph(3)
        graph.connect("r", [0, 1], [2, 2], [0.3, 0.1])
        for _ in range(400):
            y = 0.8 * graph.weight("r", 0, 2) + 0.6 * graph.weight("r", 1, 2)  # type: ignore[operator]
            pre = (np.array([0, 1]), np.array([0.8, 0.6], np.float32))
            learn(graph, "r", pre, ([2], np.array([y], np.float32)), rule=rule, eta=0.1, clip=(-50.0, 50.0))
        norm = np.linalg.norm(graph.edge_arrays("r")[2])
        assert (abs(norm - 1) < 1e-3) == bounded


def test_growth_keeps_to_its_budget_the_largest_first_and_makes_no_loops() -> None:
    graph = Graph(6)
    active = (np.arange(5), np.array([1.0, 0.9, 0.8, 0.2, 0.1], np.float32))
    assert learn(graph, "co_occurs", active, eta=1.0, create=0.5, budget=4) == 4
    found = matrix(graph, "co_occurs")
    assert set(zip(*np.nonzero(found), strict=True)) == {(0, 1), (1, 0), (0, 2), (2, 0)}
    assert found[0, 1] == np.float32(0.9)
    assert learn(graph, "co_occurs", active, eta=1.0, create=0.5) == 2, "the rest: 1-2 both ways"
    learn(graph, "co_occurs", active, eta=0.5, reward=-1.0, clip=(0.0, 1.0))
    assert matrix(graph, "co_occurs")[0, 1] == pytest.approx(0.55), "strengthened to 1, then weakened"


def test_pruning_takes_the_weakest_of_silent_nodes() -> None:
    graph = Graph(4)
    graph.connect("r", [0, 0, 1, 2], [1, 2, 3, 3], [0.1, -0.3, 0.05, 0.2])
    assert prune(graph, "r", 0.25, budget=1) == 1 and graph.weight("r", 1, 3) is None
    spread(graph, 0, steps=1, top_k=1)
    assert prune(graph, "r", 0.25, idle=0) == 1 and graph.weight("r", 0, 1) is not None
    assert prune(graph, "r", 0.25) == 1 and graph.edges == 1
    forget(graph, "r", 0.5)
    assert graph.weight("r", 0, 2) == pytest.approx(-0.15)


def test_thresholds_settle_where_nodes_are_active_as_often_as_wanted() -> None:
    graph = Graph(3)
    graph.relation("r", 1.0)
    graph.connect("r", [0, 0], [1, 2], [0.5, 0.05])
    graph.set([0, 1, 2], decay=0.0)
    for _ in range(4):
        spread(graph, 0, steps=1)
    settle(graph, 0.25, eta=0.2)
    assert graph.node_array("threshold").tolist() == pytest.approx([0.0, 0.15, 0.15])
    assert graph.node_array("fired").tolist() == [0, 0, 0]
    assert spread(graph, 0, steps=1).ids.tolist() == [1], "the weak one falls silent"
    settle(graph, 0.25, eta=0.2)
    assert graph.node_array("threshold").tolist() == pytest.approx([0.0, 0.3, 0.1])
    with pytest.raises(ValueError, match="rate = 2 must be from 0 to 1"):
        settle(graph, 2.0)


def test_a_delayed_reward_reaches_the_edges_that_were_active() -> None:
    graph = Graph(4)
    graph.connect("r", [0, 1, 2], [3, 3, 3], 0.0)
    expected = np.zeros(3)
    for step in range(60):
        node = step % 3
        learn(graph, "r", node, 3, rule="eligibility")
        expected[node] += 1.0
        fade(graph, 0.7)
        expected *= 0.7
    scale = graph.engine.eligibility_scale
    assert np.allclose(graph.engine.view("eligibility") * scale, expected, rtol=1e-5)
    reinforce(graph, "r", 2.0, eta=0.1, clip=(-9, 9))
    assert np.allclose(graph.edge_arrays("r")[2], 0.2 * expected, rtol=1e-5)
    assert graph.edge_arrays("r")[2].argmax() == 2, "the last one active has the most credit"
    graph.connect("r", 0, 1, 0.5)
    assert np.allclose(graph.engine.view("eligibility")[graph.engine.rows(0)[2 * 1]] * scale, expected[1], rtol=1e-5)


def test_the_modulator_follows_rewards_within_its_range() -> None:
    graph = Graph(2)
    assert modulate(graph, 1.0) == pytest.approx(0.3)
    assert modulate(graph, 1.0) == pytest.approx(0.95 * 0.3 + 0.3)
    assert max(modulate(graph, 1.0) for _ in range(20)) == 1.0
    assert min(modulate(graph, -1.0) for _ in range(40)) == -0.5
    graph.connect("r", 0, 1, 0.0)
    learn(graph, "r", 0, 1, eta=0.1)
    assert graph.weight("r", 0, 1) == pytest.approx(0.05), "at -0.5 half of the rate is left"


def test_every_change_can_be_recorded_and_undone() -> None:
    graph = Graph(5)
    graph.connect("r", [0, 0, 1], [1, 2, 3], [0.1, 0.2, 0.3])
    assert len(changes(graph)) == 0
    record_changes(graph, 10)
    before = matrix(graph, "r")
    spread(graph, 0, steps=2)
    learn(graph, "r", [0, 1], [2, 3], eta=0.1, reward=0.5, create=0.01)
    log = changes(graph)
    assert [(c["source"], c["target"]) for c in log] == [(0, 2), (1, 3), (0, 3), (1, 2)]
    assert set(log["step"]) == {2} and {RULES[r] for r in log["rule"]} == {"delta"} and set(log["reward"]) == {0.5}
    after = matrix(graph, "r")
    for change in log[::-1]:
        assert after[change["source"], change["target"]] == change["new"]
        after[change["source"], change["target"]] = change["old"]
    assert np.array_equal(after, before)
    for _ in range(20):
        learn(graph, "r", 0, 1, eta=0.01)
    assert len(changes(graph)) == 10 and np.all(np.diff(changes(graph)["number"].astype(int)) == 1)
    record_changes(graph, 100, every=4)
    for _ in range(20):
        learn(graph, "r", 0, 1, eta=0.01)
    assert changes(graph)["number"].tolist() == [0, 4, 8, 12, 16]
    record_changes(graph, 0)
    assert len(changes(graph)) == 0


def test_replay_draws_without_replacement_and_by_priority() -> None:
    graph = Graph(1, seed=3)
    replay: Replay[str] = Replay(graph, 3)
    for name in "wxyz":
        replay.add(name, {"w": 1.0, "x": 0.0, "y": 1.0, "z": 3.0}[name])
    assert len(replay) == 3
    draws = [replay.draw(2) for _ in range(300)]
    assert all(sorted(draw) == ["y", "z"] for draw in draws), "w is forgotten, x has no priority"
    first = [draw[0] for draw in draws]
    assert 0.65 < first.count("z") / 300 < 0.85
    again = Replay[int](Graph(1, seed=3), 50)
    other = Replay[int](Graph(1, seed=3), 50)
    for i in range(50):
        again.add(i)
        other.add(i)
    assert again.draw(10) == other.draw(10) != again.draw(10)
    with pytest.raises(ValueError, match="priority = -1"):
        replay.add("q", -1.0)
    with pytest.raises(ValueError, match="capacity = 0"):
        Replay(graph, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "hebbian"}, "rule = 'hebbian' is unknown: did you mean 'hebb'"),
        ({"eta": float("nan")}, "eta contains NaN"),
        ({"clip": (1.0, 1.0)}, r"clip = \(1, 1\) must be two ascending numbers"),
        ({"create": -1.0}, "create = -1 must be at least 0"),
        ({"rule": "eligibility", "create": 0.1}, "create goes with a rule that changes weights"),
        ({"post": [9]}, "post contains 9"),
    ],
)
def test_what_cannot_be_is_one_line(options: dict[str, object], message: str) -> None:
    graph = Graph(2)
    graph.connect("r", 0, 1)
    with pytest.raises(ValueError, match=message):
        learn(graph, "r", 0, **{"post": 1, **options})  # type: ignore[arg-type]
