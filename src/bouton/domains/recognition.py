"""The protocol of every domain of recognition.

What can be chosen is chosen on validation examples: they give the learning curve, the objective, and the penalty of the
logistic regression. Then the graph and every baseline learn all training examples, those of the validation among them,
and are tested once.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from bouton.domains import baselines
from bouton.domains.base import Domain, Outcome, Recorder, Row
from bouton.domains.codes import Matrix, distinct, one_hot, seen_before
from bouton.domains.pictures import confusion
from bouton.domains.recognizer import Examples, Labels, Learning, Recognizer
from bouton.hub.optional import require
from bouton.substrate.arrays import NONE

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
        active = [np.pad(p.active, ((0, 0), (0, width - p.active.shape[1])), constant_values=NONE) for p in parts]
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


def compare(
    task: Task, how: Learning, *, seed: int, threads: int, recorder: Recorder, strength: float | None = None
) -> Compared:
    """Learn and test, with all baselines.

    Args:
        strength: of the logistic regression; None: chosen on the validation examples.
    """
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
    if strength is None:
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


class Recognition(Domain):
    """A domain of recognition: subclasses say what the examples are.

    Attributes:
        pictured: the test of which a picture shows what was confused.
    """

    pictured: ClassVar[str] = "test"
    settings: Learning

    @abstractmethod
    def prepare(self, recorder: Recorder) -> Task:
        """Coded examples.

        Raises:
            DataError: data that are missing or not what they should be.
        """

    def finish(self, task: Task, found: Compared, recorder: Recorder) -> Outcome:
        """The table, the facts that all such domains have, and a picture of what was confused."""
        shown = self.pictured
        figures = {"confusion": confusion(task.tests[shown].labels, found.answers[shown], task.classes)}
        facts = {**code_facts(task), "chosen C of the logistic regression": found.strength}
        return Outcome(found.error, found.rows, found.recognizer.graph, facts, figures)

    def run(self, recorder: Recorder) -> Outcome:
        require("sklearn", "domains", f"domain.name = {self.name}")
        task = self.prepare(recorder)
        found = compare(task, self.settings, seed=self.seed, threads=self.threads, recorder=recorder)
        return self.finish(task, found, recorder)


def code_facts(task: Task) -> dict[str, float | int | str]:
    """How large the code is, how many codes differ, and which of the tests are known from training."""
    train = task.train()
    facts: dict[str, float | int | str] = {
        "input nodes": len(task.inputs),
        "active nodes of an example": float((train.active != NONE).sum(axis=1).mean()),
        "training examples": len(train),
        "distinct codes in training": len(distinct(train.active)),
    }
    for name, test in task.tests.items():
        facts |= {
            f"{name}: examples": len(test),
            f"{name}: distinct codes": len(distinct(test.active)),
            f"{name}: share of codes that occur in training": seen_before(train.active, test.active),
        }
    return facts
