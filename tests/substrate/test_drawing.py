"""A picture holds the contributions that ``explain`` found, no others, and in their proportions."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from matplotlib.figure import Figure

from bouton.substrate import Graph, draw, explain, paths, spread
from bouton.substrate.drawing import LOWERS, RAISES, THINNEST, WIDEST

from .graphs import Pair


def lines(figure: Figure) -> dict[str, tuple[float, str, str]]:
    """Id of each line -> width, colour, style."""
    drawn = figure.axes[0].lines
    found = {str(x.get_gid()): (x.get_linewidth(), str(x.get_color()), str(x.get_linestyle())) for x in drawn}
    assert len(found) == len(drawn)
    return found


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


@pytest.mark.parametrize("most", [3, 100])
def test_an_explanation_is_drawn_as_it_is(pair: Pair, most: int) -> None:
    active = spread(pair.graph, [1, 2, 3], steps=3, top_k=30, signed=True, record=True)
    node = max((int(n) for n in active.ids), key=lambda n: len(explain(pair.graph, active, n).contributions))
    found = explain(pair.graph, active, node)
    assert 3 < len(found.contributions) < 100 and (found.contributions < 0).any() and (found.contributions > 0).any()
    figure = draw(pair.graph, found, most=most)
    drawn = lines(figure)
    order = np.argsort(-np.abs(found.contributions), kind="stable")[:most]
    largest = float(np.abs(found.contributions).max())
    assert len(drawn) == len(order)
    for i in order:
        relation, amount = int(found.relations[i]), float(found.contributions[i])
        width, colour, style = drawn[f"2 {int(found.sources[i])} {relation} {node}"]
        assert width == pytest.approx(max(WIDEST * abs(amount) / largest, THINNEST))
        assert colour == (RAISES if amount >= 0 else LOWERS)
        assert style == ("--" if relation == 2**32 - 1 else "-")
        assert any(text.startswith(f"{amount:+.3g} ") for text in texts(figure))
    hidden = len(found.contributions) - len(order)
    assert (f"{hidden} smaller ones not drawn" in figure.axes[0].get_title()) == bool(hidden)


def small() -> Graph:
    graph = Graph(labels=["a", "b", "c", "d"])
    graph.relation("r", 1.0)
    graph.connect("r", ["a", "b", "a", "d"], ["b", "c", "d", "c"], [1.0, 1.0, 0.5, 0.5])
    graph.set(["a", "b", "c", "d"], decay=0.0)
    return graph


def test_ways_share_their_lines() -> None:
    graph = small()
    graph.connect("r", "c", "b", 1.0)
    active = spread(graph, "a", steps=4, record=True)
    found = paths(graph, active, "c")
    figure = draw(graph, found)
    drawn = lines(figure)
    expected: dict[str, float] = {}
    for strength, way in found:
        for step, ((source, _), (target, relation)) in enumerate(pairwise(way)):
            key = f"{step} {source} {relation} {target}"
            expected[key] = expected.get(key, 0.0) + strength
    assert len(found) > 1 and len(expected) < sum(len(way) - 1 for _, way in found)
    assert {key: width for key, (width, _, _) in drawn.items()} == pytest.approx(
        {key: WIDEST * amount / max(expected.values()) for key, amount in expected.items()}
    )
    assert {"a", "b", "c", "d"} <= set(texts(figure))
    ticks = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    assert ticks == ["seeds", "step 1", "step 2", "step 3", "step 4"]


def test_names_may_be_given_and_nothing_is_not_drawn() -> None:
    graph = small()
    active = spread(graph, "a", steps=2, record=True)
    figure = draw(graph, explain(graph, active, "c"), name=lambda node: f"node {node}")
    assert {"node 1", "node 3", "node 2"} <= set(texts(figure))
    with pytest.raises(ValueError, match="found holds no contributions"):
        draw(graph, explain(graph, active, "a"))
    with pytest.raises(ValueError, match="found holds no contributions"):
        draw(graph, [])
    with pytest.raises(ValueError, match="most = 0 must be at least 1"):
        draw(graph, explain(graph, active, "c"), most=0)


def test_two_relations_between_the_same_nodes_are_two_lines() -> None:
    graph = small()
    graph.connect("s", "b", "c", 2.0)
    figure = draw(graph, explain(graph, spread(graph, "a", steps=2, record=True), "c"))
    first, second = (next(x for x in figure.axes[0].lines if x.get_gid() == f"1 1 {r} 2") for r in (0, 1))
    assert not np.array_equal(first.get_ydata(), second.get_ydata())
