"""The protocol of every domain of recognition.

What can be chosen is chosen on validation examples: they give the learning curve, the objective, and the penalty of the
logistic regression. Then the graph and every baseline learn all training examples, those of the validation among them,
and are tested once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from bouton.domains import baselines
from bouton.domains.base import Recorder, Row
from bouton.domains.codes import Matrix, distinct, one_hot, seen_before
from bouton.domains.recognizer import Examples, Labels, Learning, Recognizer
from bouton.hub.optional import require

SURPRISE, PERCEPTRON = "graph", "perceptron rule, same graph"
MOST_PAIRS = 10**8  # of examples that the nearest example compares


@dataclass(frozen=True)
class Task:
    """Examples to learn and to be tested with.

    Attributes:
        inputs, classes: names of nodes.
        fit, validation: training examples in two parts.
        tests: name of a column -> examples.
    """

    inputs: Sequence[str]
    classes: Sequence[str]
    fit: Examples
    validation: Examples
    tests: Mapping[str, Examples]

    def train(self) -> Examples:
        """Both parts of the training examples."""
        width = max(self.fit.active.shape[1], self.validation.active.shape[1])
        parts = [self.fit, self.validation]
        active = [np.pad(p.active, ((0, 0), (0, width - p.active.shape[1])), constant_values=2**32 - 1) for p in parts]
        return Examples(np.concatenate(active), np.concatenate([p.labels for p in parts]))


@dataclass(frozen=True)
class Compared:
    """What came out.

    Attributes:
        rows: one for each method, the graph's first: share right on validation, then on every test.
        recognizer: what has learned all training examples.
        answers: test -> what the graph said.
        strength: of the logistic regression, as chosen.
    """

    rows: list[Row]
    recognizer: Recognizer
    answers: dict[str, Labels]
    strength: float

    @property
    def error(self) -> float:
        """Share of the validation examples that the graph got wrong."""
        return 1.0 - float(self.rows[0]["validation"])


def compare(task: Task, how: Learning, *, seed: int, threads: int, recorder: Recorder) -> Compared:
    """Learn and test, with all baselines.

    Raises:
        ConfigError: scikit-learn is not installed.
    """
    require("sklearn", "domains", "a domain of recognition")
    train = task.train()
    rows: list[Row] = []
    final: dict[str, Recognizer] = {}
    for method, rule in ((SURPRISE, "surprise"), (PERCEPTRON, "perceptron")):
        first, last = (Recognizer(task.inputs, task.classes, rule=rule, seed=seed, threads=threads) for _ in range(2))

        def after(epoch: int, surprise: float, learned: Recognizer = first, noted: bool = rule == "surprise") -> None:
            if noted:
                recorder.log(epoch, **{"train/surprise": surprise, "val/error": 1 - learned.accuracy(task.validation)})

        first.learn(task.fit, how, np.random.default_rng(seed), after)
        last.learn(train, how, np.random.default_rng(seed))
        tests = {name: last.accuracy(examples) for name, examples in task.tests.items()}
        rows.append({"method": method, "validation": first.accuracy(task.validation), **tests})
        final[method] = last

    nodes = len(task.inputs)
    fit, validation, everything = (one_hot(e.active, nodes) for e in (task.fit, task.validation, train))
    tests_ = {name: one_hot(examples.active, nodes) for name, examples in task.tests.items()}
    strength = baselines.best_strength(fit, task.fit.labels, validation, task.validation.labels)
    methods: dict[str, Callable[[Matrix, Labels], baselines.Classify]] = {
        "logistic regression": partial(baselines.logistic_regression, strength=strength),
        "nearest example": baselines.nearest_example,
        "nearest template": baselines.nearest_template,
        "majority class": baselines.majority,
    }
    if len(train) * (len(task.validation) + sum(map(len, task.tests.values()))) > MOST_PAIRS:
        del methods["nearest example"]
    for method, learn in recorder.track(methods.items(), "baselines"):
        right = (learn(fit, task.fit.labels)(validation) == task.validation.labels).mean()
        classify = learn(everything, train.labels)
        found = {name: float((classify(x) == task.tests[name].labels).mean()) for name, x in tests_.items()}
        rows.append({"method": method, "validation": float(right), **found})
    answers = {name: final[SURPRISE].recognize(examples.active) for name, examples in task.tests.items()}
    return Compared(rows, final[SURPRISE], answers, strength)


def overlap(train: Examples, test: Examples) -> dict[str, float | int | str]:
    """Facts about the codes: how many differ, and how many of the test are known from training."""
    return {
        "training examples": len(train),
        "distinct codes in training": len(distinct(train.active)),
        "test examples": len(test),
        "distinct codes in the test": len(distinct(test.active)),
        "test codes that occur in training": seen_before(train.active, test.active),
    }
