"""Nodes, edges, names, arrays without copies."""

from __future__ import annotations

import numpy as np
import pytest

from bouton.errors import KernelError
from bouton.ops import wheel
from bouton.substrate import RELATIONS, Graph, spread


def test_nodes_have_labels_and_constants() -> None:
    graph = Graph(labels=["rain", "wet"])
    assert list(graph.add(["sun"])) == [2] and len(graph) == 3
    graph.set("wet", decay=0.5, threshold=0.1, bias=-1.0, kind=7)
    for field, value in (("decay", 0.5), ("threshold", np.float32(0.1)), ("bias", -1.0), ("kind", 7)):
        assert graph.node_array(field)[1] == value
    assert graph.label(1) == "wet" and graph.ids(["sun", "rain"]).tolist() == [2, 0]
    assert list(graph.add(2)) == [3, 4] and graph.label(4) == "4"


def test_edges_are_made_changed_found_and_removed() -> None:
    graph = Graph(labels=["rain", "wet", "cold"])
    assert graph.connect("causes", "rain", ["wet", "cold"], [0.9, 0.2]) == 2
    assert graph.relations == pytest.approx({"causes": RELATIONS["causes"]})
    assert graph.connect("causes", ["rain", "rain"], ["wet", "wet"], [0.1, 0.7]) == 0
    assert graph.weight("causes", "rain", "wet") == np.float32(0.7)
    assert graph.weight("causes", "wet", "rain") is None
    sources, targets, weights = graph.edge_arrays("causes")
    assert sources.tolist() == [0, 0] and targets.tolist() == [1, 2] and np.allclose(weights, [0.7, 0.2])
    assert graph.disconnect("causes", ["rain", "wet"], ["cold", "rain"]) == 1 and graph.edges == 1
    assert graph.size()["slack"] == 1
    graph.compact()
    assert graph.size()["slack"] == 0 and graph.weight("causes", "rain", "wet") == np.float32(0.7)


def test_arrays_are_views_that_cannot_be_written_and_outlive_the_graph() -> None:
    graph = Graph(4)
    graph.connect("r", [0, 0, 1], [1, 2, 3], [0.1, 0.2, 0.3])
    targets, weights = graph.row("r", 0)
    assert targets.tolist() == [1, 2] and not weights.flags.writeable and not weights.flags.owndata
    with pytest.raises(ValueError, match="WRITEABLE"):
        weights.flags.writeable = True
    graph.connect("r", 0, 1, 0.5)
    assert weights[0] == 0.5, "a view, no copy"
    graph.connect("r", np.zeros(3000, np.int64), np.arange(3000) % 4, 1.0)
    del graph
    assert weights[1] == np.float32(0.2) or weights[1] == 1.0


def test_constants_of_nodes_change_what_spreads() -> None:
    graph = Graph(3)
    graph.connect("r", 0, [1, 2], [0.5, 0.25])
    graph.set(0, decay=0.25)
    graph.relation("r", 1.0)
    assert spread(graph, [0], steps=1).levels.tolist() == [0.25, 0.5, 0.25]
    graph.set([1, 2], threshold=0.3)
    assert spread(graph, [0], steps=1).ids.tolist() == [0, 1]
    graph.relation("r", -1.0)
    assert spread(graph, [0], steps=1).ids.tolist() == [0]
    assert graph.node_array("fired").tolist() == [3, 2, 1] and graph.clock == 3
    assert graph.node_array("last").tolist() == [3, 2, 1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: g.connect("r", [0], [9], 1.0), "targets contains 9, but the graph has the nodes 0 to 2"),
        (lambda g: g.connect("r", [0], [1], np.nan), "weights contains NaN"),
        (lambda g: g.connect("r", [0, 1], [1, 2], [1.0, 2.0, 3.0]), r"weights has shape \(3,\), but must have \(2,\)"),
        (lambda g: g.connect("r", [-1], [1]), "sources contains -1"),
        (lambda g: g.connect("r", [0.5], [1]), "sources has dtype float64"),
        (lambda g: g.weight("q", 0, 1), "relation = 'q' does not exist"),
        (lambda g: g.ids("snow"), "label 'snow' names no node"),
        (lambda g: g.set(0, decay=2.0), "decay = 2 is not valid: it must be from 0 to 1"),
        (lambda g: g.set(0, colour=2.0), "field = 'colour' is unknown; known: bias, decay, threshold"),
        (lambda g: g.add(["a", "a"]), "label 'a' names a node already"),
        (lambda g: g.relation("r", np.inf), "relation weight contains inf"),
        (lambda g: Graph(2**33), "is too many"),
    ],
)
def test_what_does_not_fit_is_one_line(call, message: str) -> None:  # type: ignore[no-untyped-def]
    graph = Graph(labels=["x", "y", "z"])
    with pytest.raises(ValueError, match=message) as error:
        call(graph)
    assert "\n" not in str(error.value)


def test_without_the_wheel_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheel, "_load", lambda: "the wheel is not installed (pip install ./kernels_rs)")
    with pytest.raises(KernelError, match="pip install"):
        Graph(1)
