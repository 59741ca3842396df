"""The algorithms of the graph in Numba and in plain Python: what the engine is compared with, one thread each."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bouton.ops.benchmarks.case import Inputs

Array = np.ndarray[Any, Any]


@cache
def numba() -> Callable[[Callable[..., Any]], Any]:
    """Numba's decorator.

    Raises:
        RuntimeError: it is not installed.
    """
    try:
        package: Any = importlib.import_module("numba")
    except ImportError as error:
        raise RuntimeError(f"Numba is not installed (pip install numba): {error}") from None
    decorate: Callable[[Callable[..., Any]], Any] = package.njit
    return decorate


def rows(x: Inputs) -> list[list[tuple[int, float]]]:
    """Targets and weights of each node as Python has them."""
    pairs = zip(x["targets"].tolist(), x["weights"].tolist(), strict=True)
    return [list(zip(targets, weights, strict=True)) for targets, weights in pairs]


def spread_in_python(top_k: int, steps: int, decay: float, edges: list[list[tuple[int, float]]], x: Inputs) -> Tensor:
    """Levels in a dictionary."""
    levels = dict.fromkeys(x["seeds"].tolist(), 1.0)
    for _ in range(steps):
        new: dict[int, float] = {}
        for node, level in levels.items():
            new[node] = new.get(node, 0.0) + decay * level
            for target, weight in edges[node]:
                new[target] = new.get(target, 0.0) + level * weight
        levels = dict(sorted(new.items(), key=lambda item: (-item[1], item[0]))[:top_k])
    found = torch.zeros(len(edges))
    found[list(levels)] = torch.tensor(list(levels.values()))
    return found


@cache
def _spread() -> Any:
    def push(
        active: Array, levels: Array, targets: Array, weights: Array, decay: float, new: Array, touched: Array
    ) -> int:
        count = 0
        for i in range(len(active)):
            node, level = active[i], levels[i]
            if new[node] == 0.0:
                touched[count] = node
                count += 1
            new[node] += decay * level
            for j in range(targets.shape[1]):
                target = targets[node, j]
                if new[target] == 0.0:
                    touched[count] = target
                    count += 1
                new[target] += level * weights[node, j]
        return count

    return numba()(push)


def spread(top_k: int, steps: int, decay: float, edges: tuple[Array, ...], x: Inputs) -> Tensor:
    """A list of touched nodes, NumPy's partition for the highest."""
    targets, weights = x["targets"].numpy(), x["weights"].numpy()
    new, touched = np.zeros(len(targets), np.float32), np.empty(len(targets), np.int64)
    active = x["seeds"].numpy()
    levels = np.ones(len(active), np.float32)
    for _ in range(steps):
        count = _spread()(active, levels, targets, weights, np.float32(decay), new, touched)
        active = touched[:count].copy()
        levels = new[active]
        new[active] = 0.0
        if count > top_k:
            best = np.argpartition(-levels, top_k)[:top_k]
            active, levels = active[best], levels[best]
    found = torch.zeros(len(targets))
    found[torch.from_numpy(active)] = torch.from_numpy(levels)
    return found


def transpose(x: Inputs) -> tuple[Array, ...]:
    """Incoming edges by target: starts, sources, weights."""
    nodes, degree = x["targets"].shape
    targets = x["targets"].reshape(-1).numpy()
    order = np.argsort(targets, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(targets, minlength=nodes))])
    return starts, (order // degree).astype(np.uint32), x["weights"].reshape(-1).numpy()[order]


@cache
def _pull() -> Any:
    def gather(levels: Array, starts: Array, sources: Array, weights: Array, decay: float, new: Array) -> None:
        for target in range(len(new)):
            total = decay * levels[target]
            for i in range(starts[target], starts[target + 1]):
                total += levels[sources[i]] * weights[i]
            new[target] = total

    return numba()(gather)


def pull(decay: float, edges: tuple[Array, ...], x: Inputs) -> Tensor:
    """One step of all nodes."""
    levels = np.zeros(len(x["targets"]), np.float32)
    levels[x["seeds"].numpy()] = 1.0
    new = np.empty_like(levels)
    _pull()(levels, *edges, np.float32(decay), new)
    return torch.from_numpy(new / (1.0 + new.sum()))


def context_rows(answers: int, x: Inputs) -> tuple[Array, ...]:
    """Edges seen in the pairs, by source: starts and targets."""
    keys = np.unique(x["contexts"].numpy() * answers + x["targets"].numpy()[:, None])
    starts = np.searchsorted(keys // answers, np.arange(5 * answers + 1))
    return starts, (keys % answers).astype(np.uint32)


@cache
def _learn() -> Any:
    def learn(
        contexts: Array,
        targets: Array,
        starts: Array,
        ends: Array,
        weights: Array,
        eta: float,
        scores: Array,
        losses: Array,
    ) -> None:
        for pair in range(len(targets)):
            scores[:] = 0.0
            for c in range(contexts.shape[1]):
                for i in range(starts[contexts[pair, c]], starts[contexts[pair, c] + 1]):
                    scores[ends[i]] += weights[i]
            top = scores.max()
            own = scores[targets[pair]] - top
            total = np.float32(0.0)
            for v in range(len(scores)):
                scores[v] = np.exp(scores[v] - top)
                total += scores[v]
            losses[pair] = np.log(total) - own
            for v in range(len(scores)):
                scores[v] *= -eta / total
            scores[targets[pair]] += eta
            for c in range(contexts.shape[1]):
                for i in range(starts[contexts[pair, c]], starts[contexts[pair, c] + 1]):
                    weights[i] += scores[ends[i]]

    return numba()(learn)


def learn(answers: int, eta: float, edges: tuple[Array, ...], x: Inputs) -> Tensor:
    """Pair by pair, from weights of zero."""
    starts, ends = edges
    weights, scores = np.zeros(len(ends), np.float32), np.empty(answers, np.float32)
    losses = np.empty(len(x["targets"]), np.float32)
    _learn()(x["contexts"].numpy(), x["targets"].numpy(), starts, ends, weights, np.float32(eta), scores, losses)
    return torch.from_numpy(losses)
