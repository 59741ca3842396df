"""neuromod: the signals, what they are made of, and what they act on."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from bouton.errors import ConfigError
from bouton.mechanisms import Vitals
from bouton.mechanisms.neuromod import SIGNALS, Modulation, Neuromod
from bouton.models.body import Body
from bouton.models.build import build
from bouton.models.context import Context

MODEL = {"vocab_size": 31, "num_layers": 1, "hidden_size": 16, "num_heads": 2}


def model_with(mechanism: str = "neuromod", **values: Any) -> Body:
    configs = {name: values if name == "neuromod" else {} for name in mechanism.split("+")}
    return build({"model": MODEL, "mechanism": configs, "seed": 0}).double()


def tokens(length: int = 20, seed: int = 1) -> Tensor:
    return torch.randint(0, 31, (2, length), generator=torch.Generator().manual_seed(seed))


def part(body: Body) -> Modulation:
    (found,) = (module for module in body.modules() if isinstance(module, Modulation))
    return found


def signals(body: Body, read: Tensor, starts: Tensor | None = None) -> dict[str, Tensor]:
    ctx = Context(torch.arange(read.shape[1])[None], starts)
    part(body)(torch.zeros(*read.shape, 16, dtype=torch.float64), read, ctx, None)
    return ctx.signals


def test_the_signals_are_those_of_the_equations() -> None:
    body = model_with(g_da=0.4, g_ach=0.3, g_na=0.2, tau_trace=5.0, tau_mean=9.0)
    head, read = part(body).head, tokens()
    starts = torch.zeros_like(read, dtype=torch.bool)
    starts[1, 6] = True
    found = signals(body, read, starts)
    for row in range(2):
        for t in range(20):
            begin = 6 if row == 1 and t >= 6 else 0
            deltas, entropy = [], torch.tensor(0.0)
            for u in range(begin, t + 1):
                known = torch.zeros(32, dtype=torch.float64)
                for w in range(begin, u):
                    vector = head.table.weight[read[row, w]]
                    known[16:] += math.exp(-(u - 1 - w) / 5) * (1 - math.exp(-1 / 5)) * vector
                    known[:16] = vector
                p = (head.table.weight @ (head.map.weight @ known) + head.prior).softmax(-1)
                entropy = -(p * p.log()).sum()
                deltas.append(-p[read[row, u]].log().item())
            weights = [math.exp(-i / 9) for i in reversed(range(len(deltas) - 1))]
            mean = sum(w * d for w, d in zip(weights, deltas, strict=False)) / sum(weights) if weights else deltas[-1]
            before = deltas[-2] if len(deltas) > 1 else deltas[-1]
            expected = {
                "dopamine": 1 + 0.4 * math.tanh(deltas[-1] - mean),
                "acetylcholine": 1 + 0.3 * (entropy.item() / math.log(31) - 0.5),
                "noradrenaline": 1 + 0.2 * math.tanh(abs(deltas[-1] - before)),
            }
            for name in SIGNALS:
                assert found[name][row, t].item() == pytest.approx(expected[name], abs=1e-12), (name, row, t)


def test_a_new_head_predicts_what_its_prior_says() -> None:
    body = model_with()
    with torch.no_grad():
        part(body).head.prior[3] = 2.0
    surprise, _, _ = part(body).head(tokens(), None, None)
    p = part(body).head.prior.softmax(-1)
    torch.testing.assert_close(surprise[:, 0], -p[tokens()[:, 0]].log())


def test_its_own_loss_teaches_the_head_and_nothing_else() -> None:
    body = model_with(g_na=0.0, g_da=0.5)
    read = torch.arange(40)[None] % 4  # the next token follows from the last one
    body(read)
    loss = body.auxiliary_loss()
    assert loss is not None
    assert body.auxiliary_loss() is None  # it is given once
    loss.backward()
    own = {name for name, _ in part(body).named_parameters()}
    touched = {name for name, p in body.named_parameters() if p.grad is not None}
    assert touched == {f"signals.parts.neuromod.{name}" for name in own}
    optimizer = torch.optim.Adam(part(body).parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        body(read)
        loss = body.auxiliary_loss()
        assert loss is not None
        loss.backward()
        optimizer.step()
    assert loss < 0.5 < math.log(4)
    with torch.no_grad():
        usual = signals(body, read)["dopamine"][0, 20:]
        shuffled = read.clone()
        shuffled[0, 30] = 9
        surprised = signals(body, shuffled)["dopamine"][0, 30]
    assert surprised > 1.3 > usual.max()


def test_no_loss_is_kept_in_evaluation() -> None:
    body = model_with().eval()
    body(tokens())
    assert body.auxiliary_loss() is None


def test_dopamine_sets_the_learning_rate_of_hebb() -> None:
    both, alone = model_with("hebb+neuromod", g_da=1.0, g_na=0.0), model_with("hebb")
    read = tokens()
    now, before = both(read)[1], alone(read)[1]
    path = ("layers", "0", "attention", "output", "hebb", "fast")
    for key in path:
        now, before = now[key], before[key]
    assert (now - before).abs().max() > 1e-3
    still = model_with("hebb+neuromod", g_da=0.0, g_na=0.0)  # acetylcholine is published; hebb does not hear it
    assert torch.equal(still(read)[0], alone(read)[0])


def test_noradrenaline_scales_the_vectors_of_the_tokens() -> None:
    body = model_with(g_na=0.7, g_da=0.0, g_ach=0.0)
    x = torch.randn(2, 20, 16, dtype=torch.float64)
    ctx = Context(torch.arange(20)[None])
    y, _ = part(body)(x, tokens(), ctx, None)
    torch.testing.assert_close(y, x * ctx.signals["noradrenaline"].unsqueeze(-1))
    assert ctx.signals["noradrenaline"].max() > 1.1
    assert torch.equal(ctx.signals["dopamine"], torch.ones(2, 20, dtype=torch.float64))


def test_a_reward_replaces_the_surprise() -> None:
    body = model_with(g_da=1.0)
    neuromod = body.mechanisms["neuromod"]
    assert isinstance(neuromod, Neuromod)
    reward = torch.zeros(2, 20)
    reward[0, 5] = 3.0
    with neuromod.reward(reward):
        found = signals(body, tokens())
    assert found["dopamine"][0, 5].item() == pytest.approx(1 + math.tanh(3.0), abs=1e-6)
    assert found["dopamine"][0, 6] < 1  # worse than of late
    torch.testing.assert_close(found["dopamine"][1], torch.ones(20, dtype=torch.float64))
    plain = signals(body, tokens())
    with neuromod.reward(torch.full((2, 20), torch.nan)):  # no reward anywhere
        unchanged = signals(body, tokens())
    for name in SIGNALS:
        assert torch.equal(plain[name], unchanged[name])
    with (
        neuromod.reward(torch.zeros(2, 3)),
        pytest.raises(ConfigError, match=r"reward \(2, 3\) must have the shape of the tokens, \(B, T\) = \(2, 20\)"),
    ):
        body(tokens())


def test_vitals_are_within_their_ranges() -> None:
    vitals = Vitals()
    model_with()(tokens(), vitals=vitals)
    values = {name.removeprefix("neuromod/"): value.item() for name, value in vitals.mean().items()}
    assert values["surprise"] == pytest.approx(math.log(31), rel=0.2)
    assert 0.9 < values["entropy"] <= 1 + 1e-6
    assert values["acetylcholine"] == pytest.approx(1 + 0.5 * (values["entropy"] - 0.5), abs=1e-6)
    assert 0 < values["dopamine_spread"] < 0.5


def test_without_gains_it_plugs_nothing() -> None:
    off = model_with(g_da=0.0, g_ach=0.0, g_na=0.0)
    assert not any(isinstance(module, Modulation) for module in off.modules())
