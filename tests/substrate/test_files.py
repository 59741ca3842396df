"""One file: whole or not at all, damage is found and named, nothing is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import bouton
from bouton import substrate
from bouton.errors import DataError
from bouton.substrate import Graph, changes, learn, modulate, record_changes, spread

from .graphs import random_pair


def everything(graph: Graph) -> list[bytes]:
    fields = [graph.node_array(f) for f in ("decay", "threshold", "bias", "kind", "fired", "last")]
    edges = [x for name in graph.relations for x in graph.edge_arrays(name)]
    engine = graph.engine
    held = [*engine.working(), engine.view("eligibility"), changes(graph)]
    state = (graph.labels, graph.relations, graph.clock, engine.modulator, engine.seed, engine.eligibility_scale)
    return [x.tobytes() for x in [*fields, *edges, *held]] + [repr(state).encode()]


def lived() -> Graph:
    graph = random_pair().graph
    graph.set([0, 1], bias=0.5, kind=3)
    record_changes(graph, 50, every=2)
    learn(graph, "a", np.arange(9), np.arange(20), rule="eligibility")
    substrate.fade(graph, 0.5)
    learn(graph, "b", np.arange(9), np.arange(20), create=0.01)
    spread(graph, [1, 2], steps=2, working_memory=0.5)
    modulate(graph, 0.4)
    return graph


def test_everything_comes_back_and_goes_on_alike(tmp_path: Path) -> None:
    graph = lived()
    graph.engine.uniform(7)
    substrate.save(graph, tmp_path / "graph")
    for verify in (True, False):
        again = substrate.open(tmp_path / "graph", verify=verify)
        assert everything(again) == everything(graph)
    assert again.engine.uniform(3).tolist() == graph.engine.uniform(3).tolist()
    for each in (graph, again):
        learn(each, "a", np.arange(30), np.arange(30), eta=0.1, create=0.0)
        spread(each, [5], steps=3)
        substrate.prune(each, "b", 0.1)
    assert everything(again) == everything(graph)
    assert everything(substrate.open(tmp_path / "graph")) != everything(graph), "what is opened is not written to"


def test_names_of_nodes_come_back(tmp_path: Path) -> None:
    substrate.save(Graph(5, labels=["ä", "b"]), tmp_path / "graph")
    graph = substrate.open(tmp_path / "graph")
    assert graph.labels == ["ä", "b"] and len(graph) == 5 and graph.ids("b") == 1
    assert not list(tmp_path.glob(".*")), "nothing is left beside it"


def test_a_flipped_bit_anywhere_is_found_and_its_section_named(tmp_path: Path) -> None:
    path = tmp_path / "graph"
    substrate.save(lived(), path)
    good = path.read_bytes()
    table = {}
    for i in range(int.from_bytes(good[12:16], "little")):
        entry = good[32 + 64 * i :][:64]
        name = entry[:40].rstrip(b"\0").decode()
        table[name] = (int.from_bytes(entry[40:48], "little"), int.from_bytes(entry[48:56], "little"))
    assert {"weight", "target", "rows 0", "trace", "working memory ids", "eligibility"} <= set(table)
    spots = {"header": 13, "table": 40}
    spots |= {name: at + size // 2 for name, (at, size) in table.items() if size}
    for name, at in spots.items():
        bad = bytearray(good)
        bad[at] ^= 16
        path.write_bytes(bad)
        with pytest.raises(DataError, match=f"section '{name}' is damaged"):
            substrate.open(path)
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(DataError, match="is cut off"):
        substrate.open(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("once upon a time, in a land far away")
    with pytest.raises(DataError, match="it is not a file of a graph"):
        substrate.open(tmp_path / "text")
    with pytest.raises(DataError, match="cannot be opened"):
        substrate.open(tmp_path / "nothing")
    with pytest.raises(DataError, match="cannot be written"):
        substrate.save(Graph(1), tmp_path / "no" / "folder")


KILLED = """
import sys
import numpy as np
from bouton import substrate
first, second = (substrate.open(sys.argv[1] + name) for name in (".a", ".b"))
print("ready", flush=True)
while True:
    substrate.save(first, sys.argv[1])
    substrate.save(second, sys.argv[1])
"""


@pytest.mark.slow
def test_killed_while_saving_the_file_is_the_old_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "graph"
    contents = []
    for name, weight in ((".a", 0.25), (".b", 0.5)):
        graph = Graph(20_000)
        graph.connect("r", np.repeat(np.arange(20_000), 10), np.tile(np.arange(10), 20_000), weight)
        substrate.save(graph, f"{path}{name}")
        contents.append(Path(f"{path}{name}").read_bytes())
    path.write_bytes(contents[0])
    source = str(Path(bouton.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([source, *sys.path])}
    rng = np.random.default_rng(0)
    interrupted = 0
    for _ in range(8):
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, env=environment, text=True
        ) as child:
            assert child.stdout is not None and child.stdout.readline() == "ready\n"
            time.sleep(float(rng.uniform(0.0, 0.05)))
            child.send_signal(signal.SIGKILL)
        interrupted += len(list(tmp_path.glob(".graph.*.partial")))
        assert path.read_bytes() in contents
        substrate.open(path)
        for leftover in tmp_path.glob(".graph.*.partial"):
            leftover.unlink()
    assert interrupted, "a kill must have met a file half written"


def test_the_older_layout_goes_out_and_comes_in(tmp_path: Path) -> None:
    graph = Graph(labels=["rain", "wet", "cold"])
    graph.connect("causes", "rain", ["wet", "cold"], [0.9, 0.2])
    graph.connect("co_occurs", ["wet", "cold"], ["cold", "wet"], [0.5, -0.25])
    graph.set("wet", decay=0.5, threshold=0.25, kind=5)
    spread(graph, "rain", steps=1)
    substrate.export_legacy(graph, tmp_path)
    assert (tmp_path / "nodes.bin").stat().st_size == 3 * 64
    assert (tmp_path / "synapses.bin").stat().st_size == 4 * 16
    again = substrate.import_legacy(tmp_path)
    assert again.labels == graph.labels and again.relations == graph.relations
    for name in graph.relations:
        assert all(map(np.array_equal, again.edge_arrays(name), graph.edge_arrays(name)))
    for field in ("decay", "threshold", "kind"):
        assert np.array_equal(again.node_array(field), graph.node_array(field))
    raw = bytearray((tmp_path / "synapses.bin").read_bytes())
    raw[0] = 77
    (tmp_path / "synapses.bin").write_bytes(raw)
    with pytest.raises(DataError, match="does not fit"):
        substrate.import_legacy(tmp_path)
    with pytest.raises(DataError, match="older layout"):
        substrate.import_legacy(tmp_path / "meta")
