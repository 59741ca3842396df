"""ultrametric: the flat router in its limit, the economy on the tree, splits and merges, the beam, its vitals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bouton.errors import ConfigError, SocketError
from bouton.mechanisms import Vitals
from bouton.mechanisms.lifecycle import merge, split
from bouton.mechanisms.moe import Moe
from bouton.mechanisms.ultrametric import TreeRouter
from bouton.models.body import Body
from bouton.models.build import build
from bouton.models.context import Context
from bouton.models.router import Choice
from bouton.testing.arms import Arm, sample_tokens

HIDDEN = 16


def model_with(ultrametric: dict[str, Any] | None = None, others: dict[str, Any] | None = None, **moe: Any) -> Body:
    own = {} if ultrametric is None else {"ultrametric": ultrametric}
    return Arm("", {"moe": moe, **own, **(others or {})}).build()


def moe_of(body: Body) -> Moe:
    moe = body.mechanisms["moe"]
    assert isinstance(moe, Moe)
    return moe


def inputs() -> Tensor:
    return torch.randn(2, 50, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def choose(body: Body, bias: Tensor | None = None, block: int = 0) -> Choice:
    moe = moe_of(body)
    bias = moe.bias(block) if bias is None else bias
    choice: Choice = moe.parts[block].routing(inputs(), bias, moe.routes(block), Context(torch.arange(50)[None]), None)[
        0
    ]
    return choice


@torch.no_grad()
@pytest.mark.parametrize("top_k", [0, 1, 2])
def test_a_tree_of_one_level_is_the_flat_router(top_k: int) -> None:
    flat, tree = model_with(top_k=top_k), model_with({"branching": 4}, top_k=top_k)
    assert [isinstance(moe_of(body).parts[0].router, TreeRouter) for body in (flat, tree)] == [False, True]
    names = [{name for name, _ in body.named_parameters()} for body in (flat, tree)]
    assert names[0] == names[1]
    tree.load_state_dict(flat.state_dict())
    for body in (flat, tree):
        moe_of(body).expert_fatigue[:, 0] = 1.7
    torch.testing.assert_close(tree(sample_tokens())[0], flat(sample_tokens())[0], rtol=0, atol=1e-12)


@torch.no_grad()
def test_a_wider_beam_than_the_tree_changes_nothing_and_a_narrow_one_does() -> None:
    logits = {beam: model_with({"beam": beam}, experts=8, top_k=1)(sample_tokens())[0] for beam in (1, 4, 8, 50)}
    assert torch.equal(logits[4], logits[8]) and torch.equal(logits[8], logits[50])
    assert not torch.allclose(logits[1], logits[4], atol=1e-6)


@torch.no_grad()
def test_the_bias_of_an_expert_moves_its_share_only() -> None:
    """Without vectors the economy acts as on the flat router: the odds among the others stay."""
    body = model_with({}, experts=6)
    router = moe_of(body).parts[0].router
    router.weight.zero_()
    bias = torch.linspace(-1, 1, 15, dtype=torch.float64)
    before = choose(body, bias).probabilities[0, 0, :6]
    torch.testing.assert_close(before, bias[:6].softmax(0))
    bias[2] -= 1.5  # tired
    after = choose(body, bias).probabilities[0, 0, :6]
    assert after[2] < before[2]
    others = [0, 1, 3, 4, 5]
    torch.testing.assert_close(after[others] / after[others].sum(), before[others] / before[others].sum())


@torch.no_grad()
def test_gates_follow_the_log_probabilities() -> None:
    for top_k in (1, 3):
        choice = choose(model_with({"beam": 8}, experts=8, top_k=top_k))
        chosen = choice.probabilities.gather(-1, choice.experts)
        expected = chosen if top_k == 1 else chosen / chosen.sum(-1, keepdim=True)
        torch.testing.assert_close(choice.gates, expected)
        assert torch.equal(choice.experts, choice.probabilities.topk(top_k).indices)


@torch.no_grad()
@pytest.mark.parametrize("top_k", [0, 1, 2])
def test_a_split_leaves_the_function_and_goes_on_below_the_leaf(top_k: int) -> None:
    body = model_with({}, top_k=top_k)
    moe, before = moe_of(body), body(sample_tokens())[0]
    for expert in (1, 4):
        split(moe, 0, expert, None)
        assert (body(sample_tokens())[0] - before).abs().max() < 1e-13
    choice, router = choose(body), moe.parts[0].router
    left = inputs() @ router.weight[router.slots] > 0  # the row of the node over 1 and 4
    assert bool(left[(choice.experts == 1).any(-1)].all()) and not left[(choice.experts >= 4).any(-1)].any()
    used = set(choice.experts.flatten().tolist())
    assert used <= set(range(6)) and used & {4, 5} and {0, 2, 3} < used  # clones work


@torch.no_grad()
def test_a_merged_root_is_never_chosen_again_and_its_subtree_keeps_the_rest() -> None:
    body = model_with({"beam": 2}, experts=5, max_experts=8)
    moe = moe_of(body)
    for expert, into in ((4, 0), (1, 0)):  # 4 is alone in its half of the tree
        merge(moe, 0, expert, into, None)
        choice = choose(body)
        assert not (choice.experts == expert).any() and not choice.probabilities[..., expert].any()
        torch.testing.assert_close(choice.probabilities.sum(-1), torch.ones(2, 50, dtype=torch.float64))


@torch.no_grad()
def test_what_others_add_to_a_logit_goes_up_the_tree() -> None:
    alone, both = (model_with({}, others, experts=8) for others in ({}, {"rab": {"strength": 30.0}}))
    before, after = choose(alone), choose(both)
    part = moe_of(both).parts[0].router.terms.parts["rab"]
    x = inputs()
    increment = part(x, before.probabilities.log(), Context(torch.arange(50)[None]), None)[0]
    best = increment.argmax(-1)
    raised = [c.probabilities.gather(-1, best.unsqueeze(-1)).mean() for c in (before, after)]
    assert raised[1] > 2 * raised[0]
    wide = model_with({"branching": 8}, {"rab": {"strength": 30.0}}, experts=8)
    router = moe_of(wide).parts[0].router
    logits = x @ router.weight[:8].T + moe_of(wide).bias(0)[:8]
    torch.testing.assert_close(choose(wide).probabilities, (logits + increment).softmax(-1))


def vitals_of(body: Body) -> dict[str, float]:
    vitals = Vitals()
    body(sample_tokens(batch=8), vitals=vitals)
    return {name: value.item() for name, value in vitals.mean().items()}


@torch.no_grad()
def test_vitals() -> None:
    wide, narrow = vitals_of(model_with({"beam": 8}, experts=8)), vitals_of(model_with({}, experts=8))
    assert wide["ultrametric/proven"] == 1 and 0.2 < narrow["ultrametric/proven"] < 1
    assert 1 < wide["ultrametric/distance"] < 3 and 0 < wide["ultrametric/probability"] < 1
    assert narrow["ultrametric/probability"] < wide["ultrametric/probability"]
    dense = vitals_of(model_with({}, experts=8, top_k=0))
    assert dense["ultrametric/probability"] == pytest.approx(1) and dense["ultrametric/proven"] == 1
    assert dense["ultrametric/distance"] == pytest.approx((1 * 1 + 2 * 2 + 4 * 3) / 7)
    single = vitals_of(model_with({}, experts=1, top_k=1))
    assert single["ultrametric/distance"] == 0 and single["ultrametric/probability"] == pytest.approx(1)


def test_decisions_grow_with_the_logarithm_of_the_experts() -> None:
    def decisions(experts: int, **ultrametric: Any) -> float:
        arm = Arm("", {"moe": {"experts": experts, "max_experts": experts}, "ultrametric": ultrametric})
        router = moe_of(build(arm.config(), device="meta")).parts[0].router
        return router.flops_per_token(1) / (2 * HIDDEN)

    assert decisions(4096) - decisions(2048) == decisions(2048) - decisions(1024) == 4  # beam * branching
    assert decisions(4096, branching=1) == 4096


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'ultrametric': beam = 1 is less than moe.top_k = 2"):
        model_with({"beam": 1})
    with pytest.raises(ConfigError, match=r"beam = 4 has no effect with moe.top_k = 0"):
        model_with({"beam": 4}, top_k=0)
    with pytest.raises(ConfigError, match=r"beam = 4 has no effect with branching = 1"):
        model_with({"beam": 4, "branching": 1})
    with pytest.raises(SocketError, match=r"refines 'moe', which is not there: use mechanism=moe\+ultrametric"):
        Arm("", {"ultrametric": {}}).build()
