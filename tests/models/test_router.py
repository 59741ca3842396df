"""The router: which roots, which weights, which twin, and where the gradient goes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bouton.models.context import Context
from bouton.models.initialize import initialize
from bouton.models.router import Choice, Router
from bouton.models.routing_tree import Routes, Tree

SLOTS, HIDDEN = 5, 6


def tree(*splits: tuple[int, int], experts: int = 3) -> Tree:
    made = Tree([e if e < experts else -1 for e in range(SLOTS)], [[-1, -1] for _ in range(SLOTS - 1)])
    for leaf, slot in splits:
        made.split(leaf, slot)
    return made


def routes_of(made: Tree) -> Routes:
    return Routes.of(made, torch.tensor(made.entry), torch.tensor(made.children))


def router(top_k: int) -> Router:
    made = Router(HIDDEN, SLOTS, top_k, 0, 1.0)
    initialize(made, 0)
    return made.double()


def choose(top_k: int, made: Tree, bias: Tensor | None = None) -> tuple[Router, Tensor, Choice]:
    routing = router(top_k)
    x = torch.randn(2, 60, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    bias = torch.zeros(2 * SLOTS - 1) if bias is None else bias
    return routing, x, routing(x, bias, routes_of(made), Context(torch.arange(60)[None]), None)[0]


def test_probabilities_and_gates() -> None:
    bias = torch.tensor([0.3, -0.2, 0.5, 9.0, 9.0, 0, 0, 0, 0], dtype=torch.float64)
    for top_k in (0, 1, 2):
        routing, x, choice = choose(top_k, tree(), bias)
        logits = F.linear(x, routing.weight[:3]) + bias[:3]
        torch.testing.assert_close(choice.probabilities[..., :3], logits.softmax(-1))
        assert not choice.probabilities[..., 3:].any()  # slots without an expert, whatever their bias
        top = logits.topk(top_k or 3).indices
        if top_k:
            assert torch.equal(choice.experts, top)
        expected = {
            0: choice.probabilities[..., :3],
            1: choice.probabilities.gather(-1, top[..., :1]),
            2: logits.gather(-1, top[..., :2]).softmax(-1),
        }[top_k]
        torch.testing.assert_close(choice.gates, expected)


@pytest.mark.parametrize("top_k", [0, 1, 2])
def test_a_node_sends_each_token_to_one_twin_with_weight_one(top_k: int) -> None:
    _, _, before = choose(top_k, tree())
    bias = torch.zeros(2 * SLOTS - 1, dtype=torch.float64)
    routing, x, after = choose(top_k, tree((1, 3), (3, 4)), bias)
    assert torch.equal(after.gates, before.gates) and torch.equal(after.probabilities, before.probabilities)
    z = F.linear(x, routing.weight[SLOTS : SLOTS + 2])
    twin = torch.where(z[..., 0] > 0, 1, torch.where(z[..., 1] > 0, 3, 4)).unsqueeze(-1)
    assert torch.equal(after.experts, torch.where(before.experts == 1, twin, before.experts))
    assert {1, 3, 4} <= set(after.experts.flatten().tolist())


def test_the_gradient_of_a_node_is_that_of_the_chosen_twins_probability() -> None:
    routing, x, choice = choose(1, tree((1, 3)))
    (grad,) = torch.autograd.grad(choice.gates.sum(), routing.weight)
    weight = routing.weight.detach().clone().requires_grad_()
    z = F.linear(x, weight[SLOTS])
    share = torch.where(z > 0, z.sigmoid(), (-z).sigmoid())
    inside = ((choice.experts == 1) | (choice.experts == 3)).squeeze(-1)
    (expected,) = torch.autograd.grad((choice.gates.detach().squeeze(-1) * share)[inside].sum(), weight)
    assert expected[SLOTS].abs().max() > 1e-3
    torch.testing.assert_close(grad[SLOTS], expected[SLOTS])
    assert not grad[SLOTS + 1 :].any()


def test_terms_are_added_and_see_the_logits_before_them() -> None:
    seen: list[Tensor] = []

    class Term(nn.Module):
        def __init__(self, row: int) -> None:
            super().__init__()
            self.row = row

        def forward(self, x: Tensor, logits: Tensor, ctx: Context, state: Any) -> tuple[Tensor, dict[str, Tensor]]:
            seen.append(logits)
            increment = torch.zeros_like(logits)
            increment[..., self.row] = 50.0
            return increment, {"row": torch.full((2,), self.row)}

    class Mechanism:
        def __init__(self, name: str) -> None:
            self.name = name

    routing = router(2)
    for row, name in ((0, "b"), (2, "a")):
        routing.terms.plug(Mechanism(name), Term(row))  # type: ignore[arg-type]
    x = torch.randn(2, 9, HIDDEN, dtype=torch.float64)
    choice, state = routing(x, torch.zeros(9), routes_of(tree()), Context(torch.arange(9)[None]), None)
    assert set(choice.experts.flatten().tolist()) == {0, 2} and {
        name: int(s["row"][0]) for name, s in state.items()
    } == {
        "a": 2,
        "b": 0,
    }
    assert torch.equal(seen[0], seen[1]) and seen[0].shape == (2, 9, SLOTS)


def test_logits_are_not_rounded_by_autocast() -> None:
    routing = router(2).float()
    x = torch.randn(2, 9, HIDDEN)
    args = (torch.zeros(9), routes_of(tree()), Context(torch.arange(9)[None]), None)
    with torch.autocast("cpu", torch.bfloat16):
        low = routing(x, *args)[0].probabilities
    assert torch.equal(low, routing(x, *args)[0].probabilities)
