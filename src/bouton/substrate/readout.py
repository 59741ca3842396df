"""Answers: what is active scores a range of nodes, and the surprise at the right one changes the edges."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from bouton.substrate.arrays import NONE, Floats, Ids, to_count, to_ids
from bouton.substrate.graph import Graph


@dataclass
class Neurotrophin:
    """Metaplasticity of answers: those that were right of late learn faster.

    ``B_t = rho B_{t-1} + (1 - rho) min(1, most) [answer = target_t]`` with ``rho = exp(-1 / tau)``, and the rate of the
    pair t is ``eta (1 + gamma B_{t-1})`` for each answer, over the pairs in the order in which they are learned.

    Attributes:
        gamma: relative rise of the rate per unit; 0: none.
        tau: time constant in pairs.
        most: what one right answer releases at most.
        level: (answers,) B after the last pair; zeros at first.

    Source: Abraham and Bear 1996 (metaplasticity).
    """

    gamma: float
    tau: float
    most: float
    level: Floats

    @staticmethod
    def of(answers: int, gamma: float, tau: float, most: float = 1.0) -> Neurotrophin:
        """Of a readout with so many answers, none of which was right yet."""
        if not tau > 0:
            raise ValueError(f"tau = {tau} is not valid: it must be above 0")
        return Neurotrophin(gamma, tau, most, np.zeros(answers, np.float32))


class Readout:
    """Nodes ``first .. first + count - 1`` as answers, reached by edges of one relation.

    The score of an answer is its bias plus what the active nodes add; probabilities are the softmax of the scores.
    Learning is ``dw = eta (1 + m) x e`` with the surprise ``e = onehot(target) - softmax(scores)``, or with
    ``rule="perceptron"`` the error ``onehot(target) - onehot(best)``, and nothing is passed back.

    Args:
        relation: made if it is new, with weight 1.
        first, count: the range of answers.
        threads: 0: one per core; the results are the same to the last bit.

    Raises:
        ValueError: a range outside of the graph.
    """

    def __init__(self, graph: Graph, relation: str, first: int, count: int, *, threads: int = 1) -> None:
        if first < 0 or count < 1 or first + count > len(graph):
            raise ValueError(f"outputs = ({first}, {count}) must be a range of the {len(graph)} nodes")
        self.graph, self.first, self.count = graph, first, count
        self.threads = to_count(threads, "threads")
        known = list(graph.relations)
        self.relation = known.index(relation) if relation in known else graph.relation(relation, 1.0)

    def scores(self, contexts: ArrayLike, levels: ArrayLike | None = None) -> Floats:
        """Scores of all answers, (pairs, count).

        Args:
            contexts: (pairs, width) active nodes; 2^32 - 1 or -1 where there are fewer.
            levels: (pairs, width); None: all 1.
        """
        nodes = _contexts(contexts)
        out = np.empty((len(nodes), self.count), np.float32)
        self.graph.engine.scores(self._reading(nodes, np.full(len(nodes), self.first, np.uint32), levels), out)
        return out

    def losses(self, contexts: ArrayLike, targets: ArrayLike, levels: ArrayLike | None = None) -> Floats:
        """-ln of the probability of each target node, (pairs,)."""
        nodes = _contexts(contexts)
        out = np.empty(len(nodes), np.float32)
        self.graph.engine.losses(self._reading(nodes, to_ids(targets, "targets"), levels), out)
        return out

    def learn(
        self,
        contexts: ArrayLike,
        targets: ArrayLike,
        levels: ArrayLike | None = None,
        *,
        rule: str = "surprise",
        eta: float = 0.1,
        bias_eta: float = 0.0,
        clip: tuple[float, float] = (-20.0, 20.0),
        batch: int = 128,
        trophin: Neurotrophin | None = None,
    ) -> Floats:
        """Learn all pairs in their order; returns -ln of the probability of each target before its batch, (pairs,).

        Args:
            targets: (pairs,) node ids of the right answers.
            bias_eta: rate of the answers' biases; 0: they stay as they are.
            batch: pairs for which the weights stand still.
            trophin: raises the rates of single answers, and goes on with these pairs.

        Raises:
            ValueError: arrays that do not fit, or a value out of its range.
        """
        nodes = _contexts(contexts)
        losses = np.empty(len(nodes), np.float32)
        reading = self._reading(nodes, to_ids(targets, "targets"), levels)
        raised = None
        if trophin is not None:
            raised = (trophin.level, math.exp(-1 / trophin.tau), min(1.0, trophin.most), trophin.gamma)
        self.graph.engine.surprise(reading, losses, rule, eta, bias_eta, clip, to_count(batch, "batch"), raised)
        return losses

    def observe(self, contexts: ArrayLike, targets: ArrayLike, *, least: int = 2, weight: float = 0.0) -> int:
        """Growth: edges for every pair of an active node and an answer that was seen ``least`` times.

        Edges that exist keep their weights. Returns how many are new.
        """
        nodes = _contexts(contexts).astype(np.int64)
        answers = np.repeat(to_ids(targets, "targets").astype(np.int64)[:, None], nodes.shape[1], axis=1)
        given = nodes != NONE
        keys, counts = np.unique((nodes[given] << 32) | answers[given], return_counts=True)
        keys = keys[counts >= least]
        sources, targets_ = (keys >> 32).astype(np.uint32), (keys & NONE).astype(np.uint32)
        old = self.graph.edge_arrays(list(self.graph.relations)[self.relation])
        known = (old[0].astype(np.int64) << 32) | old[1]
        new = ~np.isin(keys, known, assume_unique=True)
        weights = np.full(int(new.sum()), weight, np.float32)
        return self.graph.engine.connect(self.relation, sources[new], targets_[new], weights)

    def rest(self, counts: ArrayLike) -> None:
        """Resting potentials: the logarithm of how often each answer was seen, plus one, over the total."""
        seen = np.asarray(counts, np.float64) + 1.0
        answers = np.arange(self.first, self.first + self.count, dtype=np.uint32)
        self.graph.set(answers, bias=np.log(seen / seen.sum()))

    def _reading(self, contexts: Ids, targets: Ids, levels: ArrayLike | None) -> dict[str, Any]:
        return {
            "relation": self.relation,
            "first": self.first,
            "count": self.count,
            "contexts": contexts,
            "levels": None if levels is None else np.ascontiguousarray(levels, np.float32),
            "targets": targets,
            "threads": self.threads,
        }


def _contexts(contexts: ArrayLike) -> Ids:
    nodes = np.asarray(contexts)
    if nodes.ndim != 2:
        raise ValueError(f"contexts has shape {nodes.shape}, but must have (pairs, width)")
    return to_ids(np.where(nodes == -1, NONE, nodes.astype(np.int64)) if nodes.dtype.kind == "i" else nodes, "contexts")
