"""Recognition on the graph: input nodes, one node for each class, edges between all of them, one local rule."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bouton.domains.wiring import connect_all
from bouton.mechanisms.parameters import Params, integer, real
from bouton.substrate import Graph, Readout
from bouton.substrate.arrays import Ids

Labels = NDArray[np.int64]
RELATION = "means"


@dataclass(frozen=True)
class Learning(Params):
    """How a recognizer learns: the fields that all domains of recognition have."""

    epochs: int = integer(8, "times through the training examples", low=1)
    eta: float = real(0.02, "rate", low=0, low_open=True)
    slower: float = real(0.7, "factor of the rate from one time to the next", low=0, high=1, low_open=True)
    batch: int = integer(64, "examples for which the weights stand still", low=1)


@dataclass(frozen=True)
class Examples:
    """Coded examples.

    Attributes:
        active: (examples, width) input nodes, NONE where there are fewer.
        labels: (examples,) numbers of the classes.
    """

    active: Ids
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: NDArray[np.generic] | slice) -> Examples:
        return Examples(self.active[rows], self.labels[rows])


class Recognizer:
    """A graph of input nodes and classes.

    Args:
        inputs: names of the input nodes.
        classes: names of the classes.
        rule: ``surprise`` (softmax) or ``perceptron``.
        threads: of the engine; changes no result.
    """

    def __init__(
        self, inputs: Sequence[str], classes: Sequence[str], *, rule: str = "surprise", seed: int = 0, threads: int = 0
    ) -> None:
        self.rule = rule
        self.first = len(inputs)
        self.graph = Graph(labels=[*inputs, *classes], seed=seed)
        self.readout = Readout(self.graph, RELATION, self.first, len(classes), threads=threads)
        self.seconds: list[float] = []  # wall time of every time through the examples
        connect_all(self.graph, RELATION, range(self.first), range(self.first, len(self.graph)))

    def learn(
        self,
        examples: Examples,
        how: Learning,
        random: np.random.Generator,
        after: Callable[[int, float], None] = lambda epoch, surprise: None,
    ) -> None:
        """Learn examples in a random order, ``how.epochs`` times; ``after`` each gets its number from 1 on and the mean
        surprise -ln p."""
        for epoch in range(how.epochs):
            begin, eta = time.perf_counter(), how.eta * how.slower**epoch
            shuffled = examples[random.permutation(len(examples))]
            targets = (shuffled.labels + self.first).astype(np.uint32)
            losses = self.readout.learn(
                shuffled.active, targets, rule=self.rule, eta=eta, bias_eta=eta, batch=how.batch
            )
            self.seconds.append(time.perf_counter() - begin)
            after(epoch + 1, float(losses.mean()))

    def recognize(self, active: Ids) -> Labels:
        """(examples, width) -> (examples,) classes with the highest score."""
        best: Labels = self.readout.scores(active).argmax(axis=1)
        return best

    def accuracy(self, examples: Examples) -> float:
        """Share of the examples that are recognised."""
        return float((self.recognize(examples.active) == examples.labels).mean())

    def weights(self) -> NDArray[np.float32]:
        """(input nodes, classes)."""
        found = np.zeros((self.first, len(self.graph) - self.first), np.float32)
        sources, targets, weights = self.graph.edge_arrays(RELATION)
        found[sources, targets - self.first] = weights
        return found
