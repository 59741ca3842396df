"""What more threads give the associative graph: the same calls with one thread and with more, turn by turn.

    python benchmarks/graph_threads.py --threads 2 --json figures.json

A turn is a first call, which does not count, and some more; its ratio is that of the medians. Prints rates and
the median of the ratios with quartiles. The results are the same to the last bit, which is checked.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from bouton import substrate
from bouton.ops.benchmarks.cases.substrate import build_graph, build_readout, make_graph, make_pairs
from bouton.ops.benchmarks.machine import describe

STEPS = 8


class Case(NamedTuple):
    """Calls that are compared, and how many units of work one of them is."""

    name: str
    unit: str
    work: float
    call: Callable[[int], NDArray[Any]]
    calls: int
    before: Callable[[], Any] = bool  # what is done before each call, untimed


def cases() -> Iterator[Case]:
    """The sizes of ``bouton bench substrate``, all steps with as many active nodes."""
    for nodes, degree, active in ((100_000, 32, 2000), (1_000_000, 16, 20_000)):
        inputs = make_graph(nodes, degree, active, torch.float32)
        graph, seeds = build_graph(inputs), inputs["seeds"].numpy()

        def spread(threads: int, graph: Any = graph, seeds: Any = seeds, active: int = active) -> NDArray[Any]:
            return substrate.spread(graph, seeds, steps=STEPS, top_k=active, mode="push", threads=threads).levels

        yield Case(f"spread, {nodes:,} x {degree}, {active:,} active", "steps/s", STEPS, spread, 2_000_000 // nodes + 3)
    everything = np.arange(nodes)

    def pull(threads: int) -> NDArray[Any]:
        found = substrate.spread(graph, everything, steps=1, top_k=nodes, gain=1.0, mode="pull", threads=threads)
        return found.levels

    yield Case(f"pull, {nodes:,} x {degree}", "M edges/s", nodes * degree / 1e6, pull, 5)
    pairs = make_pairs(100_000, 2500, torch.float32)
    contexts, targets = pairs["contexts"].numpy(), pairs["targets"].numpy()
    readout, (sources, ends, _) = build_readout(2500, pairs)

    def learn(threads: int) -> NDArray[Any]:
        readout.threads = threads
        losses: NDArray[Any] = readout.learn(contexts, targets, eta=0.1)
        return losses

    def forget() -> None:  # every call learns the same again
        readout.graph.connect("follows", sources, ends, 0.0)

    yield Case("surprise, 2,500 answers, contexts of 4", "K pairs/s", len(targets) / 1e3, learn, 2, forget)


def measure(case: Case, threads: int, turns: int) -> dict[str, Any]:
    """Seconds of every turn with one thread and with more.

    Raises:
        RuntimeError: the results differ.
    """
    seconds: dict[int, list[float]] = {1: [], threads: []}
    case.before()
    first = case.call(1)
    for _ in range(turns):
        for count, medians in seconds.items():
            case.before()
            if not np.array_equal(case.call(count), first):
                raise RuntimeError(f"{case.name}: other results with {count} threads")
            spent = []
            for _ in range(case.calls):
                case.before()
                begin = time.perf_counter()
                case.call(count)
                spent.append(time.perf_counter() - begin)
            medians.append(float(np.median(spent)))
    ratios = np.divide(seconds[1], seconds[threads])
    rates = {str(count): case.work / float(np.median(medians)) for count, medians in seconds.items()}
    low, middle, high = np.percentile(ratios, (25, 50, 75))
    return {
        "case": case.name, "unit": case.unit, "rate": rates,
        "speed_of_one": {"median": middle, "quartiles": [low, high], "turns": turns},
    }  # fmt: skip


def main() -> None:
    """Measure all cases."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2, help="compared with one")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--json", type=Path, help="file for the figures and the machine's description")
    options = parser.parse_args()
    if options.threads < 2:
        parser.error(f"--threads {options.threads} must be at least 2: it is compared with one")
    found = []
    for case in cases():
        result = measure(case, options.threads, options.turns)
        found.append(result)
        one, more = result["rate"].values()
        ratio = result["speed_of_one"]
        low, high = ratio["quartiles"]
        print(
            f"{case.name:40} {one:8.0f} -> {more:8.0f} {case.unit:10} {ratio['median']:.2f} ({low:.2f} to {high:.2f})",
            flush=True,
        )
    if options.json is not None:
        figures = {"machine": describe("cpu"), "threads": options.threads, "results": found}
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
