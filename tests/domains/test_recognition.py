"""The protocol of recognition, on made-up codes: what is chosen where, and what the baselines are."""

import numpy as np
import pytest

from bouton.domains import baselines
from bouton.domains.base import Recorder
from bouton.domains.codes import one_hot
from bouton.domains.recognition import Task, code_facts, compare
from bouton.domains.recognizer import Examples, Learning, Recognizer

pytest.importorskip("bouton_kernels")
pytest.importorskip("sklearn")
NODES, CLASSES = 40, ["a", "b", "c"]


def _examples(count: int, seed: int, shift: int = 0) -> Examples:
    """Ten active nodes of 40, six of them from the ten of the class."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, count)
    rows = []
    for label in labels:
        own = 10 * ((label + shift) % 3) + random.permutation(10)[:6]
        rows.append(np.sort(np.concatenate([own, 30 + random.permutation(10)[:4]])))
    return Examples(np.array(rows, np.uint32), labels)


def _task() -> Task:
    names = [f"n{i}" for i in range(NODES)]
    return Task(names, CLASSES, _examples(200, 0), _examples(50, 1), {"test": _examples(80, 2)})


def test_all_methods_learn_what_is_easy_and_the_majority_does_not() -> None:
    recorder = Recorder()
    found = compare(_task(), Learning(epochs=3), seed=0, threads=1, recorder=recorder)
    table = {str(row["method"]): row for row in found.rows}
    assert next(iter(table)) == "graph" and all(set(row) == set(found.rows[0]) for row in found.rows)
    for method, row in table.items():
        assert row["test"] == 1.0 if method != "majority class" else 0.2 < float(row["test"]) < 0.5
    assert [row["step"] for row in recorder.rows] == [1, 2, 3]
    assert recorder.rows[-1]["val/error"] == found.error == 0.0
    assert recorder.rows[-1]["train/surprise"] < recorder.rows[0]["train/surprise"]
    assert (found.answers["test"] == _task().tests["test"].labels).all()


def test_nothing_is_learned_from_the_test() -> None:
    task = _task()
    other = Task(task.inputs, CLASSES, task.fit, task.validation, {"test": _examples(80, 2, shift=1)})
    results = [compare(t, Learning(epochs=2), seed=0, threads=1, recorder=Recorder()) for t in (task, other)]
    weights = [found.recognizer.weights() for found in results]
    np.testing.assert_array_equal(*weights)
    assert results[0].strength == results[1].strength
    assert float(results[1].rows[0]["test"]) == 0.0  # every class was taken for another: the labels do count


def test_the_validation_is_learned_in_the_end() -> None:
    task = _task()
    none = Examples(task.fit.active[task.fit.labels != 2], task.fit.labels[task.fit.labels != 2])
    found = compare(
        Task(task.inputs, CLASSES, none, task.validation, task.tests),
        Learning(),
        seed=0,
        threads=1,
        recorder=Recorder(),
    )
    assert float(found.rows[0]["validation"]) < 0.8 and float(found.rows[0]["test"]) > 0.9


def test_threads_change_nothing_and_seeds_change_the_order() -> None:
    made = []
    for seed, threads in ((0, 1), (0, 2), (1, 1)):
        recognizer = Recognizer([f"n{i}" for i in range(NODES)], CLASSES, threads=threads)
        recognizer.learn(_examples(300, 3), Learning(epochs=2), np.random.default_rng(seed))
        made.append(recognizer.weights())
    np.testing.assert_array_equal(made[0], made[1])
    assert (made[0] != made[2]).any()


def test_the_nearest_example_and_template_by_a_plain_loop() -> None:
    train, test = _examples(60, 4), _examples(30, 5)
    x, z = one_hot(train.active, NODES), one_hot(test.active, NODES)
    dense, other = x.toarray(), z.toarray()
    nearest = [train.labels[((dense - row) ** 2).sum(axis=1).argmin()] for row in other]
    assert baselines.nearest_example(x, train.labels)(z).tolist() == nearest
    means = np.stack([dense[train.labels == c].mean(axis=0) for c in range(3)])
    template = [((means - row) ** 2).sum(axis=1).argmin() for row in other]
    assert baselines.nearest_template(x, train.labels)(z).tolist() == template


def test_facts_count_codes_and_what_is_known_from_training() -> None:
    task = _task()
    known = Examples(np.concatenate([task.fit.active[:30], _examples(10, 9).active]), np.zeros(40, np.int64))
    facts = code_facts(Task(task.inputs, CLASSES, task.fit, task.validation, {"test": known}))
    assert (facts["input nodes"], facts["training examples"], facts["test: examples"]) == (NODES, 250, 40)
    assert facts["active nodes of an example"] == 10
    train = {tuple(row) for row in task.train().active}
    assert facts["distinct codes in training"] == len(train)
    share = np.mean([tuple(row) in train for row in known.active])
    assert facts["test: share of codes that occur in training"] == share >= 0.75
