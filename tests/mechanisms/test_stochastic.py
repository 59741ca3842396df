"""stochastic: what the numbers depend on, when they are drawn, and the ensemble of readings."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import bouton
from bouton.errors import ConfigError
from bouton.mechanisms import Vitals
from bouton.mechanisms.stochastic import READING, Stochastic, StochasticParams, predictive, readings
from bouton.models.body import Body
from bouton.ops.synapse import Binomial, drawn

MODEL = {"vocab_size": 31, "num_layers": 2, "hidden_size": 32, "num_heads": 4, "num_kv_heads": 2}


def make_body(values: dict[str, Any] | None = None, seed: int = 3, **others: Any) -> Body:
    mechanism = {"presyn": {}, "stochastic": {"train_frac": 0.5, **(values or {})}, **others}
    return bouton.build({"model": MODEL, "mechanism": mechanism, "seed": seed}).double()


def part(body: Body) -> Stochastic:
    (found,) = [m for m in body.mechanism_list() if isinstance(m, Stochastic)]
    return found


def make_tokens(rows: int = 4, length: int = 17) -> Tensor:
    return torch.randint(31, (rows, length), generator=torch.Generator().manual_seed(0))


def test_a_sample_draws_the_same_wherever_it_is_read() -> None:
    body, tokens = make_body(), make_tokens()
    whole, _ = body(tokens, samples=torch.arange(4))
    assert torch.equal(body(tokens)[0], whole)
    shuffled = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(body(tokens[shuffled], samples=shuffled)[0], whole[shuffled], rtol=1e-12, atol=1e-12)
    second, _ = body(tokens[2:], samples=torch.arange(2, 4))
    torch.testing.assert_close(second, whole[2:], rtol=1e-12, atol=1e-12)
    assert (body(tokens[2:])[0] - whole[2:]).abs().max() > 1e-3


def test_a_row_goes_on_as_the_sample_that_it_was() -> None:
    body, tokens = make_body(), make_tokens()
    whole, _ = body(tokens, samples=torch.tensor([5, 6, 7, 8]))
    _, state = body(tokens[:, :9], samples=torch.tensor([5, 6, 7, 8]))

    def row(node: Any) -> Any:
        return node[2:3] if isinstance(node, Tensor) else {key: row(value) for key, value in node.items()}

    rest, _ = body(tokens[2:3, 9:], row(state))
    torch.testing.assert_close(rest, whole[2:3, 9:], rtol=1e-11, atol=1e-11)


def test_numbers_change_with_the_step_and_the_seed_and_nothing_else() -> None:
    body, tokens = make_body(), make_tokens()
    first, _ = body(tokens)
    assert torch.equal(body(tokens)[0], first)
    body.commit_observations(lambda sums: sums)
    assert part(body).step.item() == 1
    second, _ = body(tokens)
    assert (second - first).abs().max() > 1e-3
    again = copy.deepcopy(body)
    assert torch.equal(again(tokens)[0], second)
    again.commit_observations(lambda sums: sums)
    assert part(again).step.item() == 2
    assert part(body).step.item() == 1  # a copy counts by itself
    assert part(make_body(seed=4)).seed != part(body).seed
    with torch.no_grad():
        part(body).step.zero_()
        assert torch.equal(body(tokens)[0], first)
        part(body).seed.add_(1)
    assert (body(tokens)[0] - first).abs().max() > 1e-3


def test_steps_are_counted_once_whatever_the_number_of_micro_batches() -> None:
    body, tokens = make_body(), make_tokens()
    for _ in range(3):
        body(tokens)
    body.commit_observations(lambda sums: sums)
    assert part(body).step.item() == 1
    body.eval()(tokens)
    body.commit_observations(lambda sums: sums)
    assert part(body).step.item() == 1


@pytest.mark.parametrize(("when", "training", "inference"), [("training", 1, 0), ("inference", 0, 1), ("always", 1, 1)])
def test_when_releases_are_drawn(when: str, training: int, inference: int) -> None:
    tokens = make_tokens()
    body = make_body({"when": when})
    mean = bouton.build({"model": MODEL, "mechanism": {"presyn": {}}, "seed": 3}).double()(tokens)[0]
    for mode, expected in ((True, training), (False, inference)):
        vitals = Vitals()
        logits, _ = body.train(mode)(tokens, vitals=vitals)
        assert ((logits - mean).abs().max() > 1e-6) == bool(expected)
        assert (vitals.mean()["stochastic/drawn"] > 0) == bool(expected)


def test_vitals() -> None:
    vitals = Vitals()
    make_body({"train_frac": 1.0, "vesicles": 4})(make_tokens(), vitals=vitals)
    values = vitals.mean()
    assert values["stochastic/drawn"] == 1
    assert 0 < values["stochastic/variance"] <= 0.25 / 4
    assert 0 < values["stochastic/failures"] < 1


def test_an_ensemble_of_readings() -> None:
    body, tokens = make_body(), make_tokens()
    before = {name: x.clone() for name, x in body.state_dict().items()}
    result = predictive(body, tokens, samples=4)
    assert body.training
    assert all(torch.equal(x, before[name]) for name, x in body.state_dict().items())
    assert result.mean.shape == (4, 17, 31)
    torch.testing.assert_close(result.mean.sum(-1), torch.ones(4, 17).double())
    torch.testing.assert_close(result.entropy, -(result.mean * result.mean.log()).sum(-1))
    assert result.mutual_information.min() >= 0
    assert result.mutual_information.mean() > 1e-6
    assert (result.mutual_information <= result.entropy).all()
    assert all(torch.equal(a, b) for a, b in zip(result, predictive(body, tokens, samples=4), strict=True))
    # the definition, one reading after another
    body.eval()
    with torch.no_grad(), readings(body):
        each = [body(tokens, samples=torch.arange(4) + m * READING)[0].softmax(-1) for m in range(4)]
    torch.testing.assert_close(result.mean, torch.stack(each).mean(0))
    assert (each[0] - each[1]).abs().max() > 1e-5
    inside = torch.stack([-(p * p.log()).sum(-1) for p in each]).mean(0)
    torch.testing.assert_close(result.mutual_information, result.entropy - inside, rtol=1e-6, atol=1e-12)


def test_readings_agree_where_one_is_taken_and_differ_more_where_more_is_drawn() -> None:
    body, tokens = make_body({"train_frac": 0.1}), make_tokens()
    assert predictive(body, tokens, samples=1).mutual_information.max() < 1e-12
    few, many = (predictive(body, tokens, samples=6, fraction=x).mutual_information.mean() for x in (None, 1.0))
    assert many > few > 0
    body.eval()
    once = body(tokens)[0]
    predictive(body, tokens, samples=2)
    assert torch.equal(body(tokens)[0], once)
    assert not body.training


def test_what_cannot_be_is_refused() -> None:
    for values, message in (
        ({"vesicles": 4, "count_cap": 5}, "count_cap = 5 has no effect on 4 vesicles"),
        ({"tau": 0.5}, "tau = 0.5 has no effect with mode = normal_reparam"),
    ):
        with pytest.raises(ConfigError) as caught:
            StochasticParams(**values)
        assert message in str(caught.value)
    with pytest.raises(ConfigError, match=r"presyn\.r_max = 1\.5 .* must be at most 1"):
        make_body(presyn={"r_max": 1.5})
    body = make_body({"train_frac": 0.0})
    with pytest.raises(ConfigError, match="no mechanism 'stochastic' that draws"):
        predictive(body, make_tokens())
    with pytest.raises(ConfigError, match="samples = 0"):
        predictive(make_body(), make_tokens(), samples=0)
    with pytest.raises(ConfigError, match="fraction = 2"):
        predictive(make_body(), make_tokens(), fraction=2.0)


def test_acetylcholine_sets_how_much_is_drawn() -> None:
    def logits(g_ach: float, **values: Any) -> Tensor:
        body = make_body(values, neuromod={"g_da": 0.0, "g_ach": g_ach, "g_na": 0.0})
        return body(make_tokens())[0].detach()

    assert not torch.equal(logits(1.0, train_frac=0.5), logits(0.1, train_frac=0.5))
    assert torch.equal(logits(1.0, train_frac=0.0), logits(0.1, train_frac=0.0))  # nothing else reads it
    shares = []
    for fraction in (torch.tensor([[0.0, 1.0, 1.0, 0.0]]), 1.0):
        noise = Binomial("straight_through", 4, 4, 1.0, fraction, torch.tensor([5]), torch.arange(4)[None])
        shares.append(drawn(noise, 1, 4).tolist())
    assert shares == [[[True, True, False]], [[True, True, True]]]
