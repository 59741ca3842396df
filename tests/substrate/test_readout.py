"""Learning to answer by surprise, against the definition; threads, growth, the log of changes."""

from __future__ import annotations

import numpy as np
import pytest

from bouton.substrate import Graph, Neurotrophin, Readout, changes, definition, record_changes

ANSWERS, INPUTS = 19, 40


def problem(pairs: int = 90) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    contexts = ANSWERS + rng.integers(0, INPUTS, (pairs, 3))
    contexts[::7, 2] = -1
    levels = rng.random((pairs, 3)).astype(np.float32)
    return contexts, (contexts[:, 0] * 7 + 3) % ANSWERS, levels


def made(threads: int = 1) -> Readout:
    rng = np.random.default_rng(1)
    graph = Graph(ANSWERS + INPUTS + 1)
    ends = np.stack(np.meshgrid(np.arange(ANSWERS, ANSWERS + INPUTS), np.arange(ANSWERS + 1), indexing="ij"), -1)
    ends = ends[rng.random(ends.shape[:2]) < 0.6]
    ends[ends[:, 1] == ANSWERS, 1] = ANSWERS + INPUTS  # edges to a node that is no answer
    graph.relation("says", 0.8)
    graph.connect("says", ends[:, 0], ends[:, 1], rng.normal(size=len(ends)) * 0.1)
    readout = Readout(graph, "says", 0, ANSWERS, threads=threads)
    readout.rest(np.arange(ANSWERS))
    return readout


@pytest.mark.parametrize("rule", ["surprise", "perceptron"])
@pytest.mark.parametrize("weighted", [False, True])
def test_batches_equal_the_definition(rule: str, weighted: bool) -> None:
    readout = made()
    graph = readout.graph
    contexts, targets, levels = problem()
    sources, ends, weights = graph.edge_arrays("says")
    w = np.zeros((len(graph), len(graph)))
    edges = np.zeros_like(w, dtype=bool)
    w[sources, ends], edges[sources, ends] = weights, True
    x = np.zeros((len(targets), len(graph)))
    for i, j in np.ndindex(*contexts.shape):
        if contexts[i, j] >= 0:
            x[i, contexts[i, j]] += 0.8 * (levels[i, j] if weighted else 1.0)
    bias = graph.node_array("bias")[:ANSWERS].astype(float)
    given = levels if weighted else None
    before = readout.losses(contexts, targets, given)
    losses = readout.learn(contexts, targets, given, rule=rule, eta=0.3, batch=32)
    answers, expected = w[:, :ANSWERS], []
    for first in range(0, len(targets), 32):
        here = slice(first, first + 32)
        answers, loss = definition.surprise_batch(
            answers, edges[:, :ANSWERS], bias, x[here], targets[here], 0.3, rule=rule
        )
        expected.append(loss)
    assert np.allclose(losses, np.concatenate(expected), atol=2e-5)
    assert np.allclose(losses[:32], before[:32], atol=1e-6) and not np.allclose(losses[32:], before[32:], atol=1e-3)
    new = graph.edge_arrays("says")
    assert np.allclose(new[2], np.where(ends < ANSWERS, answers[sources, np.minimum(ends, 18)], weights), atol=2e-5)
    scores = readout.scores(contexts, given)
    assert np.allclose(scores, bias + x @ answers, atol=1e-4)


@pytest.mark.parametrize("rule", ["surprise", "perceptron"])
def test_neurotrophin_equals_its_definition_whatever_the_batch(rule: str) -> None:
    contexts, targets, _ = problem()
    trophins = []
    for batch in (1, 7, 32):
        readout, trophin = made(threads=2), Neurotrophin.of(ANSWERS, gamma=3.0, tau=6.0, most=0.8)
        sources, ends, weights = readout.graph.edge_arrays("says")
        w = np.zeros((len(readout.graph), ANSWERS))
        edges = np.zeros_like(w, dtype=bool)
        own = ends < ANSWERS
        w[sources[own], ends[own]], edges[sources[own], ends[own]] = weights[own], True
        x = np.zeros((len(targets), len(readout.graph)))
        for i, j in np.ndindex(*contexts.shape):
            if contexts[i, j] >= 0:
                x[i, contexts[i, j]] += 0.8
        bias = readout.graph.node_array("bias")[:ANSWERS].astype(float)
        rates, level = definition.neurotrophin(np.zeros(ANSWERS), targets, 3.0, 6.0, 0.8)
        expected = []
        for first in range(0, len(targets), batch):
            here = slice(first, first + batch)
            w, loss = definition.surprise_batch(
                w, edges, bias, x[here], targets[here], 0.3, rule=rule, rates=rates[here]
            )
            expected.append(loss)
        half = len(targets) // 2 // batch * batch  # two calls are as good as one
        losses = [readout.learn(contexts[part], targets[part], rule=rule, eta=0.3, batch=batch, trophin=trophin)
                  for part in (slice(half), slice(half, None))]  # fmt: skip
        assert np.allclose(np.concatenate(losses), np.concatenate(expected), atol=1e-4)
        new = readout.graph.edge_arrays("says")[2]
        assert np.allclose(new[own], w[sources[own], ends[own]], atol=1e-4)
        assert np.allclose(trophin.level, level, atol=1e-6)
        trophins.append(trophin.level)
    assert np.ptp(rates) > 0.5 and np.allclose(trophins[0], trophins[2], atol=1e-6)


def test_neurotrophin_without_gain_changes_nothing_and_what_does_not_fit_is_one_line() -> None:
    contexts, targets, _ = problem()
    plain, neutral = made(), made()
    plain.learn(contexts, targets)
    neutral.learn(contexts, targets, trophin=Neurotrophin.of(ANSWERS, gamma=0.0, tau=5.0))
    assert np.array_equal(plain.graph.edge_arrays("says")[2], neutral.graph.edge_arrays("says")[2])
    with pytest.raises(ValueError, match=f"trophin has 3 elements, but the answers has {ANSWERS}"):
        plain.learn(contexts, targets, trophin=Neurotrophin.of(3, gamma=1.0, tau=5.0))
    with pytest.raises(ValueError, match="trophin gain contains inf"):
        plain.learn(contexts, targets, trophin=Neurotrophin.of(ANSWERS, gamma=np.inf, tau=5.0))
    with pytest.raises(ValueError, match="tau = 0"):
        Neurotrophin.of(3, gamma=1.0, tau=0)


def test_threads_change_no_bit() -> None:
    contexts, targets, levels = problem(500)
    found = []
    for threads in (1, 2, 8):
        readout = made(threads)
        record_changes(readout.graph, 100_000, every=3)
        losses = readout.learn(contexts, targets, levels, batch=64, bias_eta=0.01)
        found.append(
            (losses, readout.graph.edge_arrays("says")[2], readout.graph.node_array("bias"), changes(readout.graph))
        )
    for other in found[1:]:
        assert all(a.tobytes() == b.tobytes() for a, b in zip(found[0], other, strict=True))
    assert len(found[0][3]) > 1000


def test_recording_does_not_change_what_is_learned_and_says_what_was() -> None:
    contexts, targets, _ = problem()
    plain, recorded = made(), made()
    record_changes(recorded.graph, 10**6)
    old = recorded.graph.edge_arrays("says")
    for readout in (plain, recorded):
        readout.learn(contexts, targets, batch=45)
    assert np.array_equal(plain.graph.edge_arrays("says")[2], recorded.graph.edge_arrays("says")[2])
    weights = {(s, t): w for s, t, w in zip(*(x.tolist() for x in old), strict=True)}
    for change in changes(recorded.graph):
        edge = (int(change["source"]), int(change["target"]))
        assert weights[edge] == change["old"]
        weights[edge] = float(change["new"])
    final = recorded.graph.edge_arrays("says")
    assert weights == {(s, t): w for s, t, w in zip(*(x.tolist() for x in final), strict=True)}


def test_growth_by_observation_and_learning_of_a_rule() -> None:
    contexts, targets, _ = problem(2000)
    contexts = np.where(contexts < 0, -1, contexts + INPUTS * np.arange(3))  # a node per place and input
    readout = Readout(Graph(ANSWERS + 3 * INPUTS), "says", 0, ANSWERS)
    assert readout.observe(contexts, targets, least=3) > ANSWERS
    edges = readout.graph.edges
    assert readout.observe(contexts, targets, least=3) == 0 and readout.graph.edges == edges
    first = readout.learn(contexts, targets, eta=0.5).mean()
    for _ in range(5):
        last = readout.learn(contexts, targets, eta=0.5).mean()
    assert first > 2 * last
    assert (readout.scores(contexts).argmax(axis=1) == targets).mean() > 0.95


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": [ANSWERS]}, f"targets contains {ANSWERS}, which is not among the outputs 0 to 18"),
        ({"targets": [0, 1]}, "contexts has 1 rows, but targets has 2"),
        ({"contexts": [[999]]}, "contexts contains 999"),
        ({"contexts": [3]}, "contexts has shape"),
        ({"levels": [[1.0, 2.0]]}, "levels has shape"),
        ({"levels": [[np.nan]]}, "levels contains NaN"),
        ({"rule": "adam"}, "rule = 'adam' is unknown; known: perceptron, surprise"),
        ({"batch": 0}, "batch = 0 must be from 1"),
        ({"eta": np.inf}, "eta contains inf"),
    ],
)
def test_what_cannot_be_is_one_line(options: dict[str, object], message: str) -> None:
    readout = made()
    arguments = {"contexts": [[ANSWERS]], "targets": [1], **options}
    with pytest.raises(ValueError, match=message):
        readout.learn(**arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="outputs = "):
        Readout(readout.graph, "says", 0, 10**6)
