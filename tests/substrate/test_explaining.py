"""Contributions add up to the level bit for bit, and paths lead back to the seeds."""

from __future__ import annotations

import numpy as np
import pytest

from bouton.substrate import Graph, explain, learn, paths, spread

from .graphs import Pair


@pytest.mark.parametrize("options", [{}, {"gain": 2.0}, {"saturation": 0.7}, {"signed": True, "goals": [4]}])
def test_contributions_add_up_bit_for_bit(pair: Pair, options: dict[str, object]) -> None:
    active = spread(pair.graph, [1, 2, 3], steps=4, top_k=30, record=True, **options)  # type: ignore[arg-type]
    seen = 0
    for step in range(1, active.steps + 1):
        for node, level in zip(active.history[step].ids, active.history[step].levels, strict=True):
            found = explain(pair.graph, active, int(node), step=step)
            if found.goal:
                assert level == 1.0 and int(node) == 4
                continue
            total = np.float32(0)
            for x in found.contributions:
                total = np.float32(total + x)
            cut = np.clip(total, -np.float32(active.saturation), np.float32(active.saturation))
            assert np.float32(cut * np.float32(active.history[step].scale)).tobytes() == level.tobytes()
            seen += len(found.contributions)
    assert seen > 300


def test_paths_lead_from_the_seeds_and_names_are_shown() -> None:
    graph = Graph(labels=["a", "b", "c", "d", "e"])
    graph.relation("r", 1.0)
    graph.connect("r", ["a", "b", "a", "d", "e"], ["b", "c", "d", "c", "c"], [1.0, 1.0, 0.5, 0.5, 9.0])
    graph.set(["a", "b", "c", "d", "e"], decay=0.0)
    active = spread(graph, "a", steps=2, record=True)
    found = paths(graph, active, "c")
    assert [[graph.label(node) for node, _ in way] for _, way in found] == [["a", "b", "c"], ["a", "d", "c"]]
    assert [strength for strength, _ in found] == [pytest.approx(0.8), pytest.approx(0.2)]
    text = str(explain(graph, active, "c"))
    assert "c = 1.25 after step 2" in text and "+1  b r (1)" in text and "+0.25  d r (0.5)" in text


def test_what_cannot_be_explained_says_why(pair: Pair) -> None:
    active = spread(pair.graph, [1], steps=2, record=True)
    with pytest.raises(ValueError, match="record=True"):
        explain(pair.graph, spread(pair.graph, [1]), 1)
    with pytest.raises(ValueError, match="step = 3 does not exist: 2 were made"):
        explain(pair.graph, active, 1, step=3)
    node = next(int(n) for n in active.ids if len(explain(pair.graph, active, int(n)).contributions) > 2)
    learn(pair.graph, "a", np.arange(60), np.arange(60), eta=0.1)
    with pytest.raises(ValueError, match="the graph was changed"):
        explain(pair.graph, active, node)
