"""lif and what refines it: environment, diversity, firing_rate, homeostasis."""

import math

import pytest
import torch

from bouton.errors import ConfigError
from bouton.mechanisms.vitals import Vitals
from bouton.models.build import build
from bouton.testing.arms import MODEL, sample_tokens


def model_of(**mechanism):
    return build({"model": MODEL, "mechanism": mechanism, "seed": 0}).double()


def logits_of(**mechanism):
    return model_of(**mechanism).eval()(sample_tokens())[0]


def spikes_of(model, tokens):
    seen = []
    for layer in model.layers:
        neurons = layer.mixer.part.neurons
        neurons.register_forward_hook(lambda module, inputs, output: seen.append(output[1]))
    model(tokens)
    return seen


def test_lif_is_its_equations():
    model = model_of(lif={})
    neurons = model.layers[0].mixer.part.neurons
    x = torch.randn(1, 11, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    from bouton.models.context import Context

    y, spikes, state = neurons(x, x, Context(torch.arange(11)[None]), None)
    u = s = torch.zeros(16, dtype=torch.float64)
    for t in range(11):
        current = neurons.input.linear(x[0, t]) + neurons.recurrent.weight @ s + neurons.recurrent.bias
        u = torch.sigmoid(neurons.leak.raw) * u + current - s
        s = (u > 1).double()
        assert torch.equal(s, spikes[0, t])
        torch.testing.assert_close(y[0, t], torch.sigmoid(neurons.gate(x[0, t])) * s)
    torch.testing.assert_close(state["u"][0], u)
    assert torch.equal(state["s"][0], s) and 0 < spikes.mean() < 1


@pytest.mark.parametrize(
    "off",
    [
        {"environment": {"gamma": 0.0}},
        {"environment": {"gamma": 0.0}, "diversity": {"sd": 1.0}},
        {"firing_rate": {"weight": 0.0}},
        {"homeostasis": {"eta": 0.0}},
    ],
    ids=["environment", "diversity", "firing_rate", "homeostasis"],
)
def test_at_zero_strength_lif_is_alone(off):
    assert torch.equal(logits_of(lif={}, **off), logits_of(lif={}))


def test_equal_sensitivities_are_none():
    assert torch.equal(logits_of(lif={}, environment={}, diversity={"sd": 0.0}), logits_of(lif={}, environment={}))
    assert not torch.equal(logits_of(lif={}, environment={}, diversity={}), logits_of(lif={}, environment={}))


def test_the_environment_follows_the_loss_and_stays_within_0_and_1():
    model = model_of(lif={}, environment={"decay": 0.9})
    environment = model.mechanisms["environment"]
    assert environment.stress() == 1
    for loss in (2.0, 0.5, 100.0):
        before = environment.level.item()
        model.observe_loss(torch.tensor(3 * loss), torch.tensor(3))
        model.observe_loss(torch.tensor(loss), torch.tensor(1))
        model.commit_observations(lambda sums: sums)
        assert environment.level.item() == pytest.approx(0.9 * before + 0.1 * loss / math.log(29), rel=1e-5)
        assert 0 <= environment.stress() <= 1
    assert environment.stress() == 1


def test_the_environment_scales_currents():
    plain, stressed = model_of(lif={}), model_of(lif={}, environment={"gamma": 0.5})
    with torch.no_grad():
        for layer in plain.layers:
            neurons = layer.mixer.part.neurons
            for p in (*neurons.input.parameters(), neurons.recurrent.weight, neurons.recurrent.bias):
                p.mul_(1.5)
    torch.testing.assert_close(stressed(sample_tokens())[0], plain(sample_tokens())[0], rtol=1e-12, atol=1e-12)


def test_sensitivities_are_log_normal_of_mean_one_and_fixed():
    model = build({"model": {**MODEL, "hidden_size": 4096, "num_heads": 4, "num_layers": 1},
                   "mechanism": {"lif": {}, "environment": {}, "diversity": {}}, "seed": 0})  # fmt: skip
    (d,) = [buffer for name, buffer in model.named_buffers() if name.endswith(".d")]
    assert d.mean().item() == pytest.approx(1, abs=0.03) and d.log().std().item() == pytest.approx(0.5, abs=0.02)
    assert "d" not in {name.split(".")[-1] for name, _ in model.named_parameters()}


def test_the_rate_loss_is_its_equation():
    model = model_of(lif={}, firing_rate={"weight": 3.0, "target": 0.2})
    rates = torch.stack([s.mean(dim=(0, 1)) for s in spikes_of(model, sample_tokens())])
    expected = 3.0 * (rates - 0.2).square().mean()
    torch.testing.assert_close(model.auxiliary_loss(), expected)
    vitals = Vitals()
    model(sample_tokens(), vitals=vitals)
    assert "firing_rate/distance" in vitals.mean()


def test_the_rate_loss_draws_rates_to_the_target():
    model = model_of(lif={}, firing_rate={"weight": 100.0})
    tokens = sample_tokens(batch=8, length=40)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    distance = []
    for _ in range(60):
        optimizer.zero_grad()
        model(tokens)
        loss = model.auxiliary_loss()
        loss.backward()
        optimizer.step()
        distance.append(loss.item())
    assert distance[-1] < 0.5 * distance[0]


def test_thresholds_follow_rates_within_their_limits():
    model = model_of(lif={}, homeostasis={"eta": 0.5, "low": 0.9, "high": 1.1})
    homeostasis = model.mechanisms["homeostasis"]
    rates = [s.mean(dim=(0, 1)) for s in spikes_of(model, sample_tokens())]
    model.commit_observations(lambda sums: sums)
    for layer, rate in enumerate(rates):
        theta = homeostasis.get_buffer(f"theta_{layer}")
        torch.testing.assert_close(theta, (1 + 0.5 * (rate - 0.1)).clamp(0.9, 1.1), rtol=1e-6, atol=1e-6)
    assert homeostasis.theta_0.unique().numel() > 1
    with pytest.raises(ConfigError, match="enclose 1"):
        model_of(lif={}, homeostasis={"low": 1.5})


def test_it_composes_with_fatigue_and_fast_weights():
    model = model_of(lif={}, presyn={}, hebb={})
    logits, state = model(sample_tokens())
    logits.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert {"u", "s"} <= set(state["layers"]["0"]["mixer"])
