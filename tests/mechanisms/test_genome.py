"""genome: what it decodes to, gradients that reach it, and what clones and merged experts inherit."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from bouton.errors import SocketError
from bouton.mechanisms.genome import ExpertGenome
from bouton.mechanisms.lifecycle import merge, split
from bouton.mechanisms.moe import Moe
from bouton.models.body import Body
from bouton.models.build import build
from bouton.testing.arms import Arm, sample_tokens
from bouton.testing.clauses import loss_of


def model_with(moe: dict[str, Any] | None = None, **values: Any) -> tuple[Body, Moe, ExpertGenome]:
    body = Arm("genome", {"moe": moe or {}, "genome": values}).build()
    mechanism = body.mechanisms["moe"]
    assert isinstance(mechanism, Moe)
    part = mechanism.parts[0].kinetics.part
    assert isinstance(part, ExpertGenome)
    return body, mechanism, part


def run(body: Body, steps: int) -> None:
    for step in range(steps):
        body(sample_tokens(step, batch=4))
        body.commit_observations(lambda sums: sums)


def test_decoded_values_are_in_their_ranges_and_the_tax_has_mean_one() -> None:
    _, moe, part = model_with({"tau_fatigue": 10.0}, range=0.5, std=3.0)
    alive = moe.expert_alive[0]
    kinetics = part(alive)
    tax, rho, gain = (torch.as_tensor(v) for v in (kinetics.tax, kinetics.rho, kinetics.gain))
    assert tax[:4].mean().item() == pytest.approx(1) and tax.shape == (8,)
    tau = -1 / rho.log()
    assert (tau >= 10 * math.exp(-0.5) - 1e-9).all() and (tau <= 10 * math.exp(0.5) + 1e-9).all() and tau.std() > 1
    assert (gain.log().abs() <= 0.5 + 1e-12).all() and gain.std() > 0.1
    torch.testing.assert_close(part.decoder @ part.decoder.T, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-6)


def test_the_organism_state_follows_the_decoded_values() -> None:
    body, moe, part = model_with({"income": 0.3}, std=2.0)
    run(body, 1)
    before = moe.expert_energy[0].clone(), moe.expert_fatigue[0].clone(), moe.expert_use[0].clone()
    kinetics = part(moe.expert_alive[0])
    run(body, 1)
    energy = before[0] + 0.3 * (before[2] - kinetics.tax * before[0])
    torch.testing.assert_close(moe.expert_energy[0], energy.detach().clamp(0, 4))
    fatigue = kinetics.rho * before[1] + (1 - kinetics.rho) * before[2]
    torch.testing.assert_close(moe.expert_fatigue[0], fatigue.detach())


def test_gradients_reach_every_gene_of_every_living_expert() -> None:
    body, moe, part = model_with()
    run(body, 5)  # with everything at rest only the tax would matter
    loss_of(body, sample_tokens(9)).backward()
    assert part.xi.grad is not None
    assert (part.xi.grad[:4].abs() > 1e-9).all() and not part.xi.grad[4:].any()
    traits = torch.autograd.grad(moe.bias(0)[0], part.xi)[0] @ part.decoder.T
    assert (traits[0].abs() > 1e-6).all()  # tax, time constant and gain
    router = moe.parts[0].router.weight.grad
    assert router is not None
    ratio = (part.xi.grad.norm() / router.norm()).item()
    assert ratio > 1e-3  # no rounding noise beside the router's


def test_clones_inherit_with_mutations_and_the_function_stays() -> None:
    body, moe, part = model_with({"top_k": 1}, mutation=0.5)
    run(body, 5)
    optimizer = torch.optim.AdamW(body.parameters(), lr=0.01)
    loss_of(body, sample_tokens()).backward()
    optimizer.step()
    tokens = sample_tokens(3)
    before, xi = body(tokens)[0], part.xi.detach().clone()
    with torch.no_grad():
        split(moe, 0, 1, optimizer)
        torch.testing.assert_close(body(tokens)[0], before, rtol=0, atol=1e-14)
        change = part.xi[4] - xi[1]
        assert torch.equal(part.xi[:4], xi[:4]) and 0.1 < change.abs().mean() < 1.5
        moments = optimizer.state[part.xi]["exp_avg"]
        assert torch.equal(moments[4], moments[1]) and moments[1].any()
        moe.expert_fatigue[0, [1, 4]] = torch.tensor([1.5, 0.5], dtype=torch.float64)
        child = part.xi[4].clone()
        merge(moe, 0, 4, 1, optimizer)
        torch.testing.assert_close(part.xi[1], 0.25 * child + 0.75 * xi[1])


def test_training_goes_on_after_an_evaluation_that_saw_the_trees_first() -> None:
    body, _, part = model_with()
    with torch.inference_mode():
        body(sample_tokens())
    loss_of(body, sample_tokens()).backward()
    assert part.xi.grad is not None and part.xi.grad.any()


def test_it_needs_slots_for_experts() -> None:
    with pytest.raises(SocketError, match=r"mechanism 'genome' refines 'moe', .* mechanism=genome\+moe"):
        build(Arm("alone", {"genome": {}}).config())
