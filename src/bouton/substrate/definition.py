"""What the engine computes, in NumPy and float64, as plainly as possible: the tests compare it with this.

A graph is here a list of relations, each a weight and a matrix ``w[source, target]`` (0: no edge).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def spread_step(
    levels: Array,
    relations: Sequence[tuple[float, Array]],
    decay: Array,
    threshold: Array,
    top_k: int,
    *,
    signed: bool = False,
    saturation: float = np.inf,
    gain: float | None = None,
) -> Array:
    """Levels (nodes,) after one step: sum, threshold, the ``top_k`` highest (ties: the lower id), saturation, gain."""
    total = levels * decay
    for weight, w in relations:
        total = total + (levels * weight) @ w
    size = np.abs(total) if signed else total
    alive = (size > 0) & (size >= threshold)
    best = np.lexsort((np.arange(len(size)), -size))
    chosen = best[alive[best]][:top_k]
    new = np.zeros_like(total)
    new[chosen] = np.clip(total[chosen], -saturation, saturation)
    return new if gain is None else gain * new / (1.0 + np.abs(new).sum())


def three_factor(w: Array, x: Array, y: Array, rate: float, *, rule: str = "hebb") -> Array:
    """Weights after ``dw = rate x y`` on existing edges, for "oja" ``rate y (x - y w)``; rate = eta (1 + m) r."""
    change = np.outer(x, y) if rule == "hebb" else np.outer(x, y) - w * y**2
    visited = (w != 0) & (x != 0)[:, None]  # only edges of active nodes change, also with Oja's rule
    return np.where(visited, w + rate * change, w)


def softmax(scores: Array) -> Array:
    """Probabilities (..., answers)."""
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def surprise_batch(
    w: Array,
    edges: NDArray[np.bool_],
    bias: Array,
    x: Array,
    targets: NDArray[np.int64],
    eta: float,
    *,
    rule: str,
    rates: Array | None = None,
) -> tuple[Array, Array]:
    """Weights after one batch of pairs, and -ln p of each target before it.

    Args:
        w, edges: (nodes, answers) weights, and where there is an edge.
        x: (pairs, nodes) levels.
        rule: "surprise" or "perceptron".
        rates: (pairs, answers) factors of eta.
    """
    scores = bias + x @ w
    p = softmax(scores)
    pairs = np.arange(len(targets))
    error = -p if rule == "surprise" else -np.eye(w.shape[1])[scores.argmax(axis=1)]
    error[pairs, targets] += 1.0
    if rates is not None:
        error = error * rates
    return w + eta * np.where(edges, x.T @ error, 0.0), -np.log(p[pairs, targets])


def neurotrophin(
    level: Array, targets: NDArray[np.int64], gamma: float, tau: float, most: float
) -> tuple[Array, Array]:
    """Factors of the rate (pairs, answers) by the trace before each pair, and the trace (answers,) after the last."""
    rho, rates = np.exp(-1 / tau), np.empty((len(targets), len(level)))
    for i, target in enumerate(targets):
        rates[i] = 1 + gamma * level
        level = rho * level + (1 - rho) * min(1.0, most) * (np.arange(len(level)) == target)
    return rates, level


def working_memory(
    held: dict[int, float], active: dict[int, float], decay: float, floor: float, capacity: int, gain: float
) -> dict[int, float]:
    """Held levels after one tick and taking in what is active."""
    for source, factor in ((held, decay), (active, gain)):
        held = {n: max(factor * source.get(n, 0.0), 0.0 if source is held else held.get(n, 0.0)) for n in held | source}
        kept = sorted((n for n in held if held[n] >= floor), key=lambda n: (-held[n], n))[:capacity]
        held = {n: held[n] for n in kept}
    return held
