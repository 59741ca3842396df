"""The associative graph: spreading with inhibition, a pull through the whole graph, and learning of pairs by surprise.

Peers are the same algorithm in Numba, where that is installed, and in plain Python with dictionaries.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bouton.ops.benchmarks import substrate_peers as peers
from bouton.ops.benchmarks.case import FORWARD, Case, Execution, Inputs, Run, Work, generator

OP = "substrate"
DECAY = 0.85
STEPS = 8
BATCH, ETA = 128, 0.1


def cases(device: str, shapes: str) -> list[Case]:
    """Sizes of the targets: 100,000 nodes with 32 edges each, a million with 16, and 2,500 words of text."""
    if device != "cpu":
        return []
    if shapes == "small":
        return [_spreading(2000, 8, 40), _whole(2000, 8), _pairs(400, 60)]
    return [
        _spreading(100_000, 32, 2000),
        _spreading(1_000_000, 16, 20_000),
        _whole(1_000_000, 16),
        _pairs(100_000, 2500),
    ]


def make_graph(nodes: int, degree: int, seeds: int, dtype: torch.dtype) -> Inputs:
    """targets (nodes, degree), all different in a row, their weights, and seeds with level 1."""
    g = generator()
    stride = nodes // degree
    first = torch.randint(nodes, (nodes, 1), generator=g)
    jitter = torch.randint(stride, (nodes, degree), generator=g)
    return {
        "targets": (first + torch.arange(degree) * stride + jitter) % nodes,
        "weights": 0.2 * torch.rand(nodes, degree, generator=g),
        "seeds": torch.randperm(nodes, generator=g)[:seeds].sort().values,
    }


def make_pairs(pairs: int, answers: int, dtype: torch.dtype) -> Inputs:
    """A stream of words by Zipf's law; contexts (pairs, 4) of the four before, a node for each place and word."""
    g = generator()
    chance = 1.0 / torch.arange(1, answers + 1)
    words = torch.multinomial(chance, pairs + 4, replacement=True, generator=g)
    places = torch.arange(1, 5) * answers
    return {
        "contexts": torch.stack([words[3 - k : 3 - k + pairs] for k in range(4)], 1) + places,
        "targets": words[4:],
    }


def _engine(make: Callable[[Inputs], Any], run: Callable[[Any, Inputs, int], Tensor]) -> Execution:
    """The compiled engine; what ``make`` builds is built once for the same inputs."""

    def prepare(device: str, dtype: torch.dtype) -> Run:
        from bouton.substrate import engine

        if (reason := engine.why_not()) is not None:
            raise RuntimeError(reason)
        return _kept(make, lambda built, x: run(built, x, torch.get_num_threads()))

    return Execution("rust", prepare, ours=True, passes=(FORWARD,))


def _peer(name: str, make: Callable[[Inputs], Any], run: Callable[[Any, Inputs], Tensor]) -> Execution:
    def prepare(device: str, dtype: torch.dtype) -> Run:
        if name == "numba":
            peers.numba()
        return _kept(make, run)

    return Execution(name, prepare, passes=(FORWARD,))


def _torch(run: Callable[[Inputs], tuple[Tensor, ...]]) -> Execution:
    """Whole arrays in torch."""
    return Execution("torch", lambda device, dtype: run, ours=True, passes=(FORWARD,))


def _kept(make: Callable[[Inputs], Any], run: Callable[[Any, Inputs], Tensor]) -> Run:
    built: list[tuple[Tensor, Any]] = []

    def call(x: Inputs) -> tuple[Tensor, ...]:
        if not built or built[0][0] is not x["targets"]:
            built[:] = [(x["targets"], make(x))]
        return (run(built[0][1], x),)

    return call


def _arrays(x: Inputs) -> tuple[np.ndarray[Any, Any], ...]:
    nodes, degree = x["targets"].shape
    return np.repeat(np.arange(nodes), degree), x["targets"].reshape(-1).numpy(), x["weights"].reshape(-1).numpy()


def build_graph(x: Inputs) -> Any:
    """The graph of :func:`make_graph`, all edges of one relation."""
    from bouton.substrate import Graph

    graph = Graph(len(x["targets"]))
    graph.relation("edge", 1.0)
    graph.connect("edge", *_arrays(x))
    return graph


def _dense(ids: np.ndarray[Any, Any], levels: np.ndarray[Any, Any], nodes: int) -> Tensor:
    found = torch.zeros(nodes)
    found[torch.from_numpy(ids.astype(np.int64))] = torch.from_numpy(levels)
    return found


def _spread(top_k: int, steps: int, gain: float | None, mode: str, graph: Any, x: Inputs, threads: int) -> Tensor:
    from bouton.substrate import spread

    seeds = x["seeds"].numpy()
    found = spread(graph, seeds, steps=steps, top_k=top_k, gain=gain, mode=mode, threads=threads)
    return _dense(found.ids, found.levels, len(graph))


def _whole_arrays(top_k: int, steps: int, gain: float | None, x: Inputs) -> tuple[Tensor, ...]:
    """The definition in whole arrays, in the precision of the weights."""
    targets = x["targets"].long()
    levels = torch.zeros(len(targets), dtype=x["weights"].dtype)
    levels[x["seeds"].long()] = 1.0
    for _ in range(steps):
        total = DECAY * levels
        total.index_add_(0, targets.reshape(-1), (levels[:, None] * x["weights"]).reshape(-1))
        best = total.topk(min(top_k, len(total)))
        levels = torch.zeros_like(total).index_put_((best.indices,), best.values)
        if gain is not None:
            levels = gain * levels / (1.0 + levels.sum())
    return (levels,)


def _spreading(nodes: int, degree: int, top_k: int) -> Case:
    """Push from 16 seeds: after the first steps ``top_k`` nodes are active."""
    run = partial(_spread, top_k, STEPS, None, "push")
    numba = _peer("numba", _arrays, partial(peers.spread, top_k, STEPS, DECAY))
    python = _peer("python", peers.rows, partial(peers.spread_in_python, top_k, STEPS, DECAY))
    return Case(
        op=OP,
        name=f"spread, {nodes} nodes x {degree}, {top_k} active, {STEPS} steps",
        dims={"nodes": nodes, "degree": degree, "active": top_k, "steps": STEPS},
        inputs=partial(make_graph, nodes, degree, 16),
        trained=(),
        executions=(
            _engine(build_graph, run),
            _torch(partial(_whole_arrays, top_k, STEPS, None)),
            numba,
            *((python,) if nodes <= 100_000 else ()),
        ),
        outputs=("levels",),
        exact=partial(_whole_arrays, top_k, STEPS, None),
        problems=(partial(make_graph, 3 * top_k, degree, 16),) if top_k < 100 else (partial(make_graph, 6000, 8, 16),),
        out_like="weights",
        limits={"*": 1e-5},
        gate=f"spread {top_k}",
        work={FORWARD: Work(bytes=8.0 * STEPS * top_k * degree)},
        passes=(FORWARD,),
    )


def _whole(nodes: int, degree: int) -> Case:
    """One step in which all nodes are active, pulled."""
    run = partial(_spread, nodes, 1, 1.0, "pull")
    return Case(
        op=OP,
        name=f"pull, {nodes} nodes x {degree}, all active, one step",
        dims={"nodes": nodes, "degree": degree},
        inputs=partial(make_graph, nodes, degree, nodes),
        trained=(),
        executions=(
            _engine(build_graph, run),
            _torch(partial(_whole_arrays, nodes, 1, 1.0)),
            _peer("numba", peers.transpose, partial(peers.pull, DECAY)),
        ),
        outputs=("levels",),
        exact=partial(_whole_arrays, nodes, 1, 1.0),
        problems=(partial(make_graph, 1500, 12, 1500),),
        out_like="weights",
        limits={"*": 1e-5},
        gate="pull",
        work={FORWARD: Work(bytes=8.0 * nodes * degree)},
        passes=(FORWARD,),
    )


def build_readout(answers: int, x: Inputs) -> Any:
    """A readout with an edge for every pair of :func:`make_pairs`, and its edges."""
    from bouton.substrate import Graph, Readout

    readout = Readout(Graph(5 * answers), "follows", 0, answers)
    readout.observe(x["contexts"].numpy(), x["targets"].numpy(), least=1)
    return readout, readout.graph.edge_arrays("follows")


def _learn(built: Any, x: Inputs, threads: int) -> Tensor:
    readout, (sources, targets, _) = built
    readout.threads = threads
    readout.graph.connect("follows", sources, targets, 0.0)  # every call learns the same again
    return torch.from_numpy(readout.learn(x["contexts"].numpy(), x["targets"].numpy(), eta=ETA, batch=BATCH))


def _exact_pairs(answers: int, x: Inputs) -> tuple[Tensor, ...]:
    from bouton.substrate.definition import surprise_batch

    contexts, targets = x["contexts"].long().numpy(), x["targets"].long().numpy()
    edges = np.zeros((5 * answers, answers), bool)
    edges[contexts.reshape(-1), np.repeat(targets, 4)] = True
    w, losses = np.zeros(edges.shape), []
    for first in range(0, len(targets), BATCH):
        here = slice(first, first + BATCH)
        active = np.zeros((len(targets[here]), len(edges)))
        np.add.at(active, (np.arange(len(active))[:, None], contexts[here]), 1.0)
        w, loss = surprise_batch(w, edges, np.zeros(answers), active, targets[here], ETA, rule="surprise")
        losses.append(loss)
    return (torch.from_numpy(np.concatenate(losses)),)


def _dense_matrix(answers: int, x: Inputs) -> tuple[Tensor, ...]:
    """The same batches with a matrix of all nodes and answers, zero where there is no edge."""
    contexts, targets = x["contexts"].long(), x["targets"].long()
    edges = torch.zeros(5 * answers, answers)
    edges[contexts, targets[:, None]] = 1.0
    w, losses = torch.zeros_like(edges), []
    for context, target in zip(contexts.split(BATCH), targets.split(BATCH), strict=True):
        p = w[context].sum(1).softmax(-1)
        own = torch.arange(len(target))
        losses.append(-p[own, target].log())
        p[own, target] -= 1.0
        for place in context.unbind(1):
            w.index_add_(0, place, p * edges[place], alpha=-ETA)
    return (torch.cat(losses),)


def _pairs(pairs: int, answers: int) -> Case:
    """Every pair: scores of all answers, exact softmax, change of all edges that gave a score."""
    return Case(
        op=OP,
        name=f"surprise, {pairs} pairs, {answers} answers, contexts of 4",
        dims={"pairs": pairs, "answers": answers},
        inputs=partial(make_pairs, pairs, answers),
        trained=(),
        executions=(
            _engine(partial(build_readout, answers), _learn),
            _torch(partial(_dense_matrix, answers)),
            _peer("numba", partial(peers.context_rows, answers), partial(peers.learn, answers, ETA)),
        ),
        outputs=("losses",),
        exact=partial(_exact_pairs, answers),
        problems=(partial(make_pairs, 300, 60),) if answers == 60 else (partial(make_pairs, 300, answers),),
        out_like="targets",
        limits={"*": 1e-5},
        gate=f"surprise {answers}",
        passes=(FORWARD,),
    )
