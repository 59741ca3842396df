"""The associative body: causal, decode equals parallel, grows as it says, and its checkpoints hold all of it."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

import bouton
from bouton.errors import ConfigError, SocketError
from bouton.mechanisms.vitals import Vitals
from bouton.models.growth import Directory, Sketch
from bouton.models.substrate import Substrate
from bouton.substrate.definition import softmax

pytest.importorskip("bouton_kernels")
VOCAB = 11


def make(*words: str) -> Substrate:
    cfg = bouton.compose("model=substrate", "data=stdlib", f"model.vocab_size={VOCAB}", *words)
    body = bouton.build(cfg)
    assert isinstance(body, Substrate)
    return body


def rows(batch: int = 3, length: int = 40, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, VOCAB, (batch, length), generator=g)
    starts = torch.rand(batch, length, generator=g) < 0.1
    starts[:, 0] = True
    return tokens, starts


def teach(body: Substrate, steps: int = 6, **options: Any) -> list[float]:
    tokens, starts = rows(**options)
    losses = []
    for _ in range(steps):
        nats, count = body.learn(tokens[:, :-1], tokens[:, 1:], starts[:, :-1], 0.2)
        losses.append(nats / count)
    return losses


@pytest.fixture(scope="module")
def taught() -> Substrate:
    body = make()
    teach(body)
    return body


def test_it_learns_and_is_surprised_less(taught: Substrate) -> None:
    losses = teach(make(), 12)
    assert losses[0] > 0.9 * np.log(VOCAB) and losses[-1] < 0.6 * losses[0]
    assert taught.num_parameters() == taught.graph.edges + VOCAB > VOCAB
    assert len(taught.assemblies) > 0


def test_no_position_sees_a_later_one(taught: Substrate) -> None:
    tokens, starts = rows(seed=1)
    logits, _ = taught(tokens, starts=starts)
    changed = tokens.clone()
    changed[:, 20:] = (changed[:, 20:] + 1) % VOCAB
    other, _ = taught(changed, starts=starts)
    assert torch.equal(logits[:, :20], other[:, :20])
    assert not torch.equal(logits[:, 20:], other[:, 20:])


@pytest.mark.parametrize("cuts", [[1, 2, 3, 4, 5], [7], [13, 14, 39], list(range(1, 40))])
def test_any_split_gives_the_same_logits(taught: Substrate, cuts: list[int]) -> None:
    tokens, starts = rows(seed=2)
    whole, end = taught(tokens, starts=starts)
    state, parts = None, []
    for a, b in zip([0, *cuts], [*cuts, tokens.shape[1]], strict=True):
        logits, state = taught(tokens[:, a:b], state, starts=starts[:, a:b])
        parts.append(logits)
    assert torch.equal(torch.cat(parts, 1), whole)
    assert state is not None and all(torch.equal(state[name], end[name]) for name in end)


def test_a_document_knows_nothing_of_the_one_before(taught: Substrate) -> None:
    tokens, _ = rows(seed=3)
    starts = torch.zeros_like(tokens, dtype=torch.bool)
    starts[:, 15] = True
    logits, _ = taught(tokens, starts=starts)
    alone, _ = taught(tokens[:, 15:])
    assert torch.equal(logits[:, 15:], alone)


def test_scores_are_the_sum_of_what_is_active(taught: Substrate) -> None:
    tokens, starts = rows(1, 9, seed=4)
    logits, _ = taught(tokens, starts=starts)
    nodes, keys, _ = taught.active(tokens, None, starts)
    contexts = np.concatenate((nodes, taught.assemblies.find(keys)), axis=-1)[0]
    for t, active in enumerate(contexts):
        expected = taught.rest.double().numpy().copy()
        for node in active[active >= 0]:
            targets, weights = taught.graph.row("predicts", int(node))
            expected[targets] += weights
        np.testing.assert_allclose(logits[0, t].double().numpy(), expected, rtol=1e-5, atol=1e-5)
    assert softmax(logits[0].double().numpy()).sum() == pytest.approx(9)


def test_what_was_seen_once_has_no_edge() -> None:
    tokens = torch.arange(6)[None]
    for least, edges in ((1, 4 + 3 + 2 + 1), (2, 0)):
        body = make(f"model.least={least}", "model.assemblies=1")
        body.learn(tokens[:, :4], tokens[:, 1:5], None, 0.1)
        assert body.graph.edges == edges
    body.learn(tokens[:, :4], tokens[:, 1:5], None, 0.1)
    assert body.graph.edges == 10
    assert body.counts.tolist() == [0, 2, 2, 2, 2] + [0] * 6
    expected = (torch.tensor(body.counts).double() + 1) / (8 + VOCAB)
    torch.testing.assert_close(body.rest.double(), expected.log(), rtol=1e-6, atol=0)


def test_it_stops_growing_when_it_is_told() -> None:
    body = make("model.grow_steps=2", "model.least=1")
    teach(body, 2)
    size, rest = body.graph.edges, body.rest.clone()
    losses = teach(body, 4, seed=9)
    assert body.graph.edges == size and torch.equal(body.rest, rest)
    assert losses[-1] < losses[0]


def test_ignored_targets_teach_nothing() -> None:
    tokens, starts = rows()
    body, targets = make(), torch.full_like(tokens, -100)
    assert body.learn(tokens, targets, starts, 0.2) == (0.0, 0)
    assert body.graph.edges == 0
    targets[0, :5] = tokens[0, 1:6]
    assert body.learn(tokens, targets, starts, 0.2)[1] == 5


def test_a_checkpoint_holds_everything() -> None:
    body, other = make("mechanism=neuromod"), make("mechanism=neuromod")
    teach(body)
    state = {name: tensor.clone() for name, tensor in body.state_dict().items()}
    other.load_state_dict(state)
    tokens, starts = rows(seed=5)
    assert torch.equal(body(tokens, starts=starts)[0], other(tokens, starts=starts)[0])
    for one in (body, other):  # what is seen a second time now grows in both
        teach(one, 2, seed=6)
    assert body.graph.edges == other.graph.edges
    assert torch.equal(body(tokens, starts=starts)[0], other(tokens, starts=starts)[0])
    assert all(torch.equal(x, y) for x, y in zip(body.state_dict().values(), other.state_dict().values(), strict=True))
    del state["counts"]
    with pytest.raises(RuntimeError, match="counts"):
        other.load_state_dict(state)


def test_forward_changes_nothing(taught: Substrate) -> None:
    before = taught.state_dict()
    tokens, starts = rows(seed=7)
    vitals = Vitals()
    taught(tokens, starts=starts, vitals=vitals)
    after = taught.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert {"substrate/edges", "substrate/assemblies", "substrate/active"} <= vitals.mean().keys()


def test_what_is_written_to_the_resting_potentials_is_heard(taught: Substrate) -> None:
    body = make()
    body.load_state_dict(taught.state_dict())
    tokens, starts = rows(seed=8)
    before, _ = body(tokens, starts=starts)
    with torch.no_grad():
        body.rest += torch.arange(VOCAB)
    after, _ = body(tokens, starts=starts)
    torch.testing.assert_close(after - before, torch.arange(VOCAB).float().expand_as(before), rtol=0, atol=1e-4)


@pytest.mark.parametrize("words", [["model.positions=2"], ["model.assemblies=1"], ["model.least=1"], ["model.eta=0.2"],
                                   ["model.rule=perceptron"], ["model.clip=0.05"], ["model.batch=7"],
                                   ["model.grow_steps=1"], ["mechanism=neuromod"], ["mechanism=bdnf"],
                                   ["mechanism=bdnf+neuromod"]])  # fmt: skip
def test_every_field_has_an_effect(words: list[str], taught: Substrate) -> None:
    body = make(*words)
    tokens, starts = rows()
    for _ in range(6):
        body.learn(tokens[:, :-1], tokens[:, 1:], starts[:, :-1], 2 * body.config.eta)
    logits, _ = body(tokens, starts=starts)
    assert not torch.equal(logits, taught(tokens, starts=starts)[0])


def test_every_field_of_bdnf_has_an_effect_and_gamma_0_none() -> None:
    plain, trophic = teach(make()), teach(make("mechanism=bdnf"))
    assert teach(make("mechanism=bdnf", "mechanism.bdnf.gamma=0")) == plain != trophic
    for field in ("gamma=2", "tau=5", "max=0.5"):
        assert teach(make("mechanism=bdnf", f"mechanism.bdnf.{field}")) not in (plain, trophic)


def test_neurotrophin_is_in_the_checkpoint_and_in_the_vitals() -> None:
    body, other = make("mechanism=bdnf"), make("mechanism=bdnf")
    losses = teach(body)
    other.load_state_dict(body.state_dict())
    twin = copy.deepcopy(body)
    assert teach(body, 2) == teach(other, 2) == teach(twin, 2)
    tokens, starts = rows(seed=7)
    vitals = Vitals()
    body(tokens, starts=starts, vitals=vitals)
    assert 1.0 < vitals.mean()["bdnf/gain"] < 2.0 and vitals.mean()["bdnf/saturated"] == 1.0
    assert losses[-1] < losses[0]
    with pytest.raises(RuntimeError, match="neurotrophin"):
        body.load_state_dict(make().state_dict())


def test_dopamine_follows_surprise() -> None:
    calm, excited = make(), make("mechanism=neuromod", "mechanism.neuromod.g_da=0")
    assert teach(calm) == teach(excited)


def test_other_mechanisms_are_refused_in_one_line() -> None:
    with pytest.raises(
        SocketError, match=r"mechanism 'hebb' does not work on body 'substrate'.*bdnf and neuromod do"
    ) as told:
        make("mechanism=hebb")
    assert len(str(told.value).splitlines()) == 1


def test_wrong_fields_and_tokens_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.positions = 0"):
        make("model.positions=0")
    with pytest.raises(ConfigError, match=r"model\.assemblies = 8 is not valid: with 50000 tokens at most 3"):
        make("model.vocab_size=50000", "model.assemblies=8")
    with pytest.raises(ValueError, match="id 11"):
        make()(torch.tensor([[0, 11]]))


def test_a_sketch_never_counts_too_low() -> None:
    sketch, g = Sketch(), np.random.default_rng(0)
    keys = g.integers(0, 2**40, 5000)
    keys = np.concatenate([keys, keys[:100], keys[:50]])
    distinct, times = sketch.add(keys)
    expected = dict(zip(*np.unique(keys, return_counts=True), strict=True))
    assert all(n >= expected[k] for k, n in zip(distinct, times, strict=True))
    assert np.mean([n == expected[k] for k, n in zip(distinct, times, strict=True)]) > 0.99
    assert (sketch.add(keys[:100])[1] >= 3).all()


def test_a_directory_finds_what_it_has() -> None:
    directory = Directory()
    assert directory.find(np.array([[3]])).tolist() == [[-1]]
    directory.add(np.array([5, 9]), np.array([50, 90]))
    directory.add(np.array([1, 7, 11]), np.array([10, 70, 110]))
    assert directory.find(np.array([[1, 2, 5], [7, 11, 12]])).tolist() == [[10, -1, 50], [70, 110, -1]]


def test_a_copy_learns_by_itself(taught: Substrate) -> None:
    twin = copy.deepcopy(taught)
    tokens, starts = rows(seed=10)
    before, _ = taught(tokens, starts=starts)
    assert torch.equal(twin(tokens, starts=starts)[0], before)
    teach(twin, 2, seed=10)
    assert not torch.equal(twin(tokens, starts=starts)[0], before)
    assert torch.equal(taught(tokens, starts=starts)[0], before)
