"""rab: the formula, gradients to both codes and the form, what follows the experts, and doing nothing at zero."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bouton.errors import SocketError
from bouton.mechanisms import Vitals
from bouton.mechanisms.lifecycle import merge, split
from bouton.mechanisms.moe import Moe
from bouton.mechanisms.rab import CodeMatch, Rab, RabParams
from bouton.models.body import Body
from bouton.models.context import Context
from bouton.models.initialize import initialize
from bouton.testing.arms import Arm, sample_tokens
from bouton.testing.clauses import loss_of


def model_with(rab: dict[str, Any], **moe: Any) -> tuple[Body, Moe, list[CodeMatch]]:
    body = Arm("", {"moe": moe, "rab": rab}).build()
    mechanism, mine = body.mechanisms["moe"], body.mechanisms["rab"]
    assert isinstance(mechanism, Moe) and isinstance(mine, Rab)
    return body, mechanism, mine.parts


@torch.no_grad()
def test_the_increment_is_the_bilinear_form_of_two_distributions() -> None:
    part = CodeMatch(RabParams(codes=3, strength=0.7), 0, 5, 4)
    initialize(part, 0)
    part = part.double()
    part.compatibility.copy_(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)))
    x = torch.randn(2, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    increment, state = part(x, torch.zeros(2, 6, 4), Context(torch.arange(6)[None]), None)
    assert increment.shape == (2, 6, 4) and state == {}
    for b, t, e in [(0, 0, 0), (1, 5, 3), (0, 3, 2)]:
        cargo = torch.stack([(part.cargo[c] @ x[b, t]).exp() for c in range(3)])
        snare = part.snare[e].exp()
        total = sum(
            cargo[i] / cargo.sum() * part.compatibility[i, j] * snare[j] / snare.sum()
            for i in range(3)
            for j in range(3)
        )
        assert increment[b, t, e].item() == pytest.approx(0.7 * float(total), abs=1e-12)
    assert increment.max() <= 0.7 * part.compatibility.max() and increment.min() >= 0.7 * part.compatibility.min()


@pytest.mark.parametrize("top_k", [0, 1, 2])
def test_gradients_reach_both_codes_and_the_form_of_living_roots(top_k: int) -> None:
    body, _, parts = model_with({}, top_k=top_k)
    loss_of(body, sample_tokens()).backward()
    for part in parts:
        for parameter in (part.cargo, part.snare, part.compatibility):
            assert parameter.grad is not None and parameter.grad.abs().max() > 1e-7
        assert part.snare.grad is not None and not part.snare.grad[4:].any() and part.snare.grad[:4].any(1).all()


@torch.no_grad()
def test_equal_codes_attract() -> None:
    _, moe, parts = model_with({"strength": 50.0, "codes": 4}, top_k=1)
    for part in parts:
        part.snare.copy_(torch.eye(8, 4) * 50)  # expert e takes cargo e
    x = torch.randn(1, 40, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 10
    choice = moe.parts[0].routing(x, moe.bias(0), moe.routes(0), Context(torch.arange(40)[None]), None)[0]
    cargo = (x @ parts[0].cargo.mT).argmax(-1)
    assert (choice.experts.squeeze(-1) == cargo).double().mean() > 0.9


def test_a_split_shares_the_code_and_a_merge_of_roots_averages_it() -> None:
    body, moe, parts = model_with({}, experts=4)
    optimizer = torch.optim.AdamW(body.parameters(), lr=1e-2)
    for step in range(2):
        optimizer.zero_grad()
        loss_of(body, sample_tokens(step)).backward()
        body.commit_observations(lambda sums: sums)
        optimizer.step()
    with torch.no_grad():
        before = body(sample_tokens(5))[0]
        snare = parts[0].snare.clone()
        split(moe, 0, 1, optimizer)
        assert torch.equal(parts[0].snare, snare)
        assert (body(sample_tokens(5))[0] - before).abs().max() < 1e-13
        moe.expert_fatigue[0, :4] = torch.tensor([0.1, 0.5, 0.3, 1.0])
        moment = optimizer.state[parts[0].snare]["exp_avg"].clone()
        merge(moe, 0, 0, 2, optimizer)
    torch.testing.assert_close(parts[0].snare[2], 0.25 * snare[0] + 0.75 * snare[2])
    torch.testing.assert_close(optimizer.state[parts[0].snare]["exp_avg"][2], 0.25 * moment[0] + 0.75 * moment[2])
    assert torch.equal(parts[0].snare[[1, 3]], snare[[1, 3]])


@torch.no_grad()
def test_vitals_and_picture() -> None:
    values = {}
    for strength in (0.1, 0.2):
        body, _, parts = model_with({"strength": strength})
        vitals = Vitals()
        body(sample_tokens(), vitals=vitals)
        values[strength] = vitals.per_layer()
    assert values[0.2]["rab/spread"][0] == pytest.approx(2 * values[0.1]["rab/spread"][0].item(), rel=1e-5)
    codes = parts[0].snare[:4].softmax(-1)
    expected = -(codes * codes.log()).sum(-1).mean()
    assert values[0.2]["rab/snare_entropy"][0] == pytest.approx(expected.item(), rel=1e-5)
    assert 0 < values[0.2]["rab/cargo_entropy"][0] <= torch.tensor(8.0).log()
    mine = body.mechanisms["rab"]
    assert isinstance(mine, Rab)
    picture = mine.pictures([])["affinity_layer1"]
    assert picture.values.shape == (8, 8)
    torch.testing.assert_close(picture.values, parts[1].affinity())


@torch.no_grad()
def test_moved_counts_the_tokens_that_go_elsewhere() -> None:
    shares = []
    for strength in (1e-9, 1e4):
        vitals = Vitals()
        model_with({"strength": strength}, experts=8)[0](sample_tokens(), vitals=vitals)
        shares.append(vitals.mean()["rab/moved"].item())
    assert shares[0] == 0 and shares[1] > 0.3


def test_off_and_alone() -> None:
    body, moe, parts = model_with({"strength": 0.0})
    assert not parts and not moe.parts[0].router.terms
    assert torch.equal(body(sample_tokens())[0], Arm("", {"moe": {}}).build()(sample_tokens())[0])
    with pytest.raises(SocketError, match=r"refines 'moe', which is not there: use mechanism=moe\+rab"):
        Arm("", {"rab": {}}).build()
