"""Spreading equals its definition in float64, and itself for any number of threads and either direction."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from bouton.substrate import Graph, definition, overlap, spread

from .graphs import random_pair


def dense(active, nodes: int):  # type: ignore[no-untyped-def]
    levels = np.zeros(nodes)
    levels[active.ids] = active.levels
    return levels


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("top_k", "saturation", "gain"), [(60, np.inf, None), (7, 0.8, None), (20, np.inf, 3.0)])
def test_equals_the_definition(signed: bool, top_k: int, saturation: float, gain: float | None) -> None:
    for seed in range(3):
        pair = random_pair(seed=seed)
        expected = np.zeros(60)
        expected[[1, 5, 9]] = [1.0, 0.5, 2.0]
        for steps in range(1, 5):
            expected = definition.spread_step(
                expected,
                pair.relations,
                pair.decay,
                pair.threshold,
                top_k,
                signed=signed,
                saturation=saturation,
                gain=gain,
            )
            found = spread(
                pair.graph,
                [1, 5, 9],
                levels=[1.0, 0.5, 2.0],
                steps=steps,
                top_k=top_k,
                signed=signed,
                saturation=min(saturation, 1e18),
                gain=gain,
            )
            assert set(found.ids) == set(np.flatnonzero(expected))
            assert np.allclose(dense(found, 60), expected, rtol=1e-4, atol=1e-6)


def test_threads_and_direction_change_no_bit() -> None:
    rng = np.random.default_rng(0)
    graph = Graph(20_000)
    for name in ("a", "b"):
        ends = rng.integers(0, 20_000, (2, 240_000))
        graph.connect(name, ends[0], ends[1], rng.normal(size=240_000))
    seeds = rng.choice(20_000, 5000, replace=False)
    levels = rng.random(5000)
    found = [
        spread(graph, seeds, levels=levels, steps=3, top_k=4000, signed=True, gain=100.0, mode=mode, threads=threads)
        for mode, threads in itertools.product(("push", "pull", "auto"), (1, 2, 8))
    ]
    assert len(found[0]) == 4000
    for other in found[1:]:
        assert np.array_equal(other.ids, found[0].ids)
        assert other.levels.tobytes() == found[0].levels.tobytes()


def test_ties_go_to_the_lower_id_and_order_of_insertion_does_not_count() -> None:
    edges = np.array([[0, 9], [0, 3], [0, 7], [0, 1], [0, 5]])
    for order in itertools.permutations(range(5)):
        graph = Graph(10)
        graph.connect("r", edges[list(order), 0], edges[list(order), 1], 1.0)
        graph.set(0, decay=0.0)
        assert spread(graph, 0, steps=1, top_k=3).ids.tolist() == [1, 3, 5]


def test_goals_groups_and_convergence() -> None:
    graph = Graph(6)
    graph.relation("r", 1.0)
    graph.connect("r", 0, [1, 2, 3], [0.4, 0.3, 0.2])
    graph.set(0, decay=1.0)
    found = spread(graph, 0, steps=50, epsilon=1e-4, goals=[5], goal_strength=2.0)
    assert found.converged and found.steps < 50 and found.level(5) == 2.0
    assert found.level(1) == pytest.approx(0.4 / 0.15, rel=1e-2)
    inhibited = spread(graph, 0, steps=1, groups=[2**32 - 1, 4, 4, 4, 4, 4])
    assert inhibited.ids.tolist() == [0, 1] and inhibited.top(1) == [(0, 1.0)]
    graph.set([2, 3, 4, 5], kind=1)
    assert spread(graph, 0, steps=1, groups="kind").ids.tolist() == [0, 2], "the best of either kind"
    assert spread(graph, 0, steps=1, groups="kind", group_top_k=2).ids.tolist() == [0, 1, 2, 3]
    assert overlap(found, found) == 1.0 and 0 < overlap(found, inhibited) < 1


def test_working_memory_equals_its_definition() -> None:
    pair = random_pair()
    graph = pair.graph
    graph.engine.set_working(0.6, 5, 0.05)
    held: dict[int, float] = {}
    for seeds in ([0, 1], [2], [3, 4], [5]):
        before = graph.engine.working()
        again = spread(graph, np.concatenate([seeds, before[0]]), levels=[*[1.0] * len(seeds), *before[1]], steps=2)
        found = spread(graph, seeds, steps=2, working_memory=0.5)
        assert np.array_equal(found.ids, again.ids), "the seeds are joined by what is held"
        levels = dict(zip(found.ids.tolist(), found.levels.tolist(), strict=True))
        held = definition.working_memory(held, levels, 0.6, 0.05, 5, 0.5)
        ids, values = graph.engine.working()
        assert ids.tolist() == sorted(held)
        assert np.allclose(values, [held[i] for i in sorted(held)], rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 0.0}, "sparsity = 0.0 must be above 0"),
        ({"mode": "sideways"}, "mode = 'sideways' is unknown; known: auto, push, pull"),
        ({"saturation": -1.0}, "saturation = -1 must be above 0"),
        ({"gain": float("nan")}, "gain = NaN must be above 0"),
        ({"epsilon": -1.0}, "epsilon = -1 must be at least 0"),
        ({"levels": [1.0, 2.0]}, "levels has shape"),
        ({"groups": [1]}, "groups has 1 elements, but the graph has 3"),
        ({"groups": "sort"}, "groups = 'sort' is unknown; known: kind"),
        ({"goals": [7]}, "goals contains 7"),
        ({"steps": -1}, "steps = -1 must be at least 0"),
        ({"threads": 5000, "mode": "pull"}, "threads"),
    ],
)
def test_what_cannot_be_is_one_line(options: dict[str, object], message: str) -> None:
    graph = Graph(3)
    graph.connect("r", 0, 1)
    if "threads" in options:
        graph = Graph(400)
        graph.connect("r", np.repeat(np.arange(400), 50), np.tile(np.arange(50), 400), 1.0)
    with pytest.raises(ValueError, match=message):
        spread(graph, 0, **options)  # type: ignore[arg-type]
