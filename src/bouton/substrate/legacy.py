"""The older layout of such graphs: a record of 64 bytes per node and of 16 bytes per edge, in files of a folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from bouton.errors import DataError
from bouton.files import write_bytes, write_json
from bouton.substrate.graph import Graph

NODE = np.dtype(
    {
        "names": ["id", "kind", "threshold", "decay", "fire_count", "fan_out", "offset"],
        "formats": ["<u8", "u1", "<f4", "<f4", "<u4", "<u4", "<u8"],
        "offsets": [0, 8, 16, 20, 32, 36, 40],
        "itemsize": 64,
    }
)
"""What this graph knows of the 64 bytes; ``offset`` counts the bytes before the node's first edge."""
EDGE = np.dtype([("to", "<u8"), ("relation", "<u2"), ("flags", "<u2"), ("weight", "<f4")])
NOWHERE = 2**64 - 1


def export_legacy(graph: Graph, folder: str | Path) -> None:
    """Write ``nodes.bin``, ``synapses.bin``, ``syn_offsets.bin`` and ``meta/*.json``.

    Biases and eligibilities have no place there.
    """
    folder = Path(folder)
    found = [graph.edge_arrays(name) for name in graph.relations]
    sources = np.concatenate([np.zeros(0, np.uint32), *(part[0] for part in found)])
    targets = np.concatenate([np.zeros(0, np.uint32), *(part[1] for part in found)])
    weights = np.concatenate([np.zeros(0, np.float32), *(part[2] for part in found)])
    relations = np.repeat(np.arange(len(found)), [len(part[0]) for part in found])
    order = np.argsort(sources, kind="stable")
    edges = np.zeros(len(order), EDGE)
    edges["to"], edges["relation"], edges["weight"] = targets[order], relations[order], weights[order]
    nodes = np.zeros(len(graph), NODE)
    nodes["id"] = np.arange(len(graph))
    for ours, theirs in (("kind", "kind"), ("threshold", "threshold"), ("decay", "decay"), ("fired", "fire_count")):
        nodes[theirs] = graph.node_array(ours)
    nodes["fan_out"] = np.bincount(sources.astype(np.int64), minlength=len(graph))
    first = np.cumsum(nodes["fan_out"], dtype=np.uint64) - nodes["fan_out"]
    nodes["offset"] = first * EDGE.itemsize
    for name, array in (
        ("nodes", nodes),
        ("synapses", edges),
        ("syn_offsets", np.where(nodes["fan_out"] > 0, first, np.uint64(NOWHERE)).astype("<u8")),
    ):
        write_bytes(folder / f"{name}.bin", array.tobytes())
    header = {"version": 1, "n_neurons": len(graph), "n_synapses": len(edges), "next_id": len(graph)}
    write_json(folder / "meta" / "header.json", header)
    write_json(folder / "meta" / "relations.json", [[name, weight] for name, weight in graph.relations.items()])
    write_json(folder / "meta" / "aliases.json", {label.lower(): i for i, label in enumerate(graph.labels)})


def import_legacy(folder: str | Path) -> Graph:
    """The graph of such a folder. Abandoned blocks of edges are left out, of equal edges the last counts.

    Raises:
        DataError: files that are missing or do not fit each other.
    """
    folder = Path(folder)
    try:
        nodes = np.frombuffer((folder / "nodes.bin").read_bytes(), NODE)
        edges = np.frombuffer((folder / "synapses.bin").read_bytes(), EDGE)
        relations = json.loads((folder / "meta" / "relations.json").read_text())
        aliases = json.loads((folder / "meta" / "aliases.json").read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} is not a graph of the older layout: {error}") from None
    first = nodes["offset"].astype(np.int64) // EDGE.itemsize
    length = nodes["fan_out"].astype(np.int64)
    if np.any((first + length)[length > 0] > len(edges)) or np.any(edges["to"] >= max(len(nodes), 1)):
        raise DataError(f"{folder} is damaged: synapses.bin does not fit nodes.bin")
    before = np.cumsum(length) - length
    slots = np.arange(length.sum()) + np.repeat(first - before, length)
    sources, kept = np.repeat(np.arange(len(nodes), dtype=np.uint32), length), edges[slots]
    graph = Graph(len(nodes), labels=_labels(aliases, len(nodes)))
    for number, (name, weight) in enumerate(relations):
        graph.relation(name, weight)
        here = kept["relation"] == number
        if here.any():
            graph.connect(name, sources[here], kept["to"][here], kept["weight"][here])
    ids = np.arange(len(nodes), dtype=np.uint32)
    graph.set(ids, decay=nodes["decay"], threshold=nodes["threshold"], kind=nodes["kind"])
    return graph


def _labels(aliases: dict[str, int], nodes: int) -> list[str]:
    """One name for each of the first nodes, as far as all of them have one."""
    names = {number: alias for alias, number in reversed(aliases.items())}
    count = next((i for i in range(nodes) if i not in names), nodes)
    return [names[i] for i in range(count)]
