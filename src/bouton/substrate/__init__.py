"""An associative graph that learns by local rules, on the CPU, without gradients.

    from bouton import substrate

    graph = substrate.Graph(labels=["rain", "wet", "sun", "dry"])
    graph.connect("causes", ["rain", "sun"], ["wet", "dry"], [0.9, 0.8])
    active = substrate.spread(graph, ["rain"], steps=2, record=True)
    print(substrate.explain(graph, active, "wet"))
    substrate.draw(graph, substrate.paths(graph, active, "wet")).savefig("wet.png")
    substrate.learn(graph, "co_occurs", active, create=0.01)    # Hebb: what is active together
    substrate.save(graph, "weather.graph")
    graph = substrate.open("weather.graph")

The engine is compiled (the wheel ``bouton-kernels``); its results are the same bits for any number of threads.
:mod:`bouton.substrate.definition` says in NumPy and float64 what it computes.
"""

from __future__ import annotations

from bouton.substrate.arrays import Nodes
from bouton.substrate.changes import changes, record_changes
from bouton.substrate.drawing import draw
from bouton.substrate.explaining import Explanation, explain, paths
from bouton.substrate.files import open, save
from bouton.substrate.graph import RELATIONS, Graph
from bouton.substrate.learning import fade, forget, learn, modulate, prune, reinforce, settle
from bouton.substrate.legacy import export_legacy, import_legacy
from bouton.substrate.readout import Neurotrophin, Readout
from bouton.substrate.replay import Replay
from bouton.substrate.spreading import Activation, overlap, spread

__all__ = [
    "RELATIONS",
    "Activation",
    "Explanation",
    "Graph",
    "Neurotrophin",
    "Nodes",
    "Readout",
    "Replay",
    "changes",
    "draw",
    "explain",
    "export_legacy",
    "fade",
    "forget",
    "import_legacy",
    "learn",
    "modulate",
    "open",
    "overlap",
    "paths",
    "prune",
    "record_changes",
    "reinforce",
    "save",
    "settle",
    "spread",
]
