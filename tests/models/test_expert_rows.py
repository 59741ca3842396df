"""Copies and merges of experts: weights, optimizer state, and the matching of hidden units."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bouton.models.context import Context
from bouton.models.expert_rows import copy_expert, match, merge_expert, nearest, reset_row
from bouton.models.experts import Experts
from bouton.models.initialize import initialize
from bouton.models.router import Choice
from bouton.models.transformer import TransformerConfig

SLOTS = 4


@torch.enable_grad()
def trained(activation: str = "swiglu") -> tuple[Experts, torch.optim.Optimizer]:
    config = TransformerConfig(hidden_size=8, mixer_ratio=1.5, bias=True, activation=activation)
    experts = Experts(config, 0, SLOTS, 1)
    initialize(experts, 0)
    experts.double()
    optimizer = torch.optim.AdamW(experts.parameters(), lr=0.01)
    for step in range(3):
        optimizer.zero_grad()
        run(experts, [e for e in range(SLOTS) for _ in range(3)], seed=step).square().sum().backward()
        optimizer.step()
    return experts, optimizer


def run(experts: Experts, chosen: list[int], seed: int = 0) -> Tensor:
    x = torch.randn(1, len(chosen), 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    ones = torch.ones(1, len(chosen), 1, dtype=torch.float64)
    choice = Choice(torch.tensor(chosen)[None, :, None], ones, ones)
    y: Tensor = experts(x, choice, Context(torch.arange(len(chosen))[None]), None)[0]
    return y


def rows(experts: Experts, optimizer: torch.optim.Optimizer, expert: int) -> list[Tensor]:
    moments = [optimizer.state[s][name] for s in experts.stacks() for name in ("exp_avg", "exp_avg_sq")]
    return [tensor[expert].detach().clone() for tensor in [*experts.stacks(), *moments]]


def permute(experts: Experts, optimizer: torch.optim.Optimizer, expert: int, order: Tensor) -> None:
    with torch.no_grad():
        for stack in experts.stacks():
            if (dim := experts.unit_dim(stack)) is not None:
                for tensor in (stack, optimizer.state[stack]["exp_avg"], optimizer.state[stack]["exp_avg_sq"]):
                    tensor[expert] = tensor[expert].index_select(dim, order)


@torch.no_grad()
def test_a_copy_has_weights_and_moments_of_the_original() -> None:
    experts, optimizer = trained()
    assert len(experts.stacks()) == 6
    before = rows(experts, optimizer, 1), rows(experts, optimizer, 0)
    copy_expert(experts, 1, 2, optimizer)
    for copied, original in zip(rows(experts, optimizer, 2), before[0], strict=True):
        assert torch.equal(copied, original) and original.any()
    assert all(map(torch.equal, rows(experts, optimizer, 0), before[1]))
    copy_expert(experts, 1, 3, None)  # where there is no optimizer only the weights are copied
    assert torch.equal(experts.up[3], experts.up[1])


@torch.no_grad()
def test_a_merge_finds_the_units_of_a_permuted_copy() -> None:
    experts, optimizer = trained()
    copy_expert(experts, 1, 2, optimizer)
    before, y = rows(experts, optimizer, 1), run(experts, [1] * 5)
    order = torch.randperm(experts.width, generator=torch.Generator().manual_seed(0))
    permute(experts, optimizer, 2, order)
    torch.testing.assert_close(run(experts, [2] * 5), y)
    assert torch.equal(order[match(experts, 2, 1)], torch.arange(experts.width))
    merge_expert(experts, 2, 1, 0.3, optimizer)
    for merged, original in zip(rows(experts, optimizer, 1), before, strict=True):
        torch.testing.assert_close(merged, original, rtol=1e-14, atol=0)


@torch.no_grad()
def test_a_merge_is_an_average_by_share() -> None:
    experts, optimizer = trained("relu2")
    order = match(experts, 3, 0)
    a, b = rows(experts, optimizer, 3), rows(experts, optimizer, 0)
    merge_expert(experts, 3, 0, 0.25, optimizer)
    torch.testing.assert_close(experts.up[0], 0.25 * a[0][order] + 0.75 * b[0])
    torch.testing.assert_close(experts.down[0], 0.25 * a[1][:, order] + 0.75 * b[1])


@torch.no_grad()
def test_units_with_a_value_of_their_own_are_not_matched() -> None:
    experts, _ = trained()
    experts.activation.part = torch.nn.PReLU(experts.width)
    assert torch.equal(match(experts, 0, 1), torch.arange(experts.width))


@torch.no_grad()
def test_nearest_is_the_permuted_neighbour() -> None:
    experts, optimizer = trained()
    copy_expert(experts, 0, 3, optimizer)
    permute(experts, optimizer, 3, torch.arange(experts.width).flip(0))
    experts.up[3] *= 1.1
    assert nearest(experts, 0, [1, 2, 3]) == 3


@torch.no_grad()
def test_a_reset_row_has_no_past() -> None:
    experts, optimizer = trained()
    reset_row(experts.down_bias, 1, torch.full((8,), 7.0, dtype=torch.float64), optimizer)
    assert experts.down_bias is not None
    assert experts.down_bias[1].tolist() == pytest.approx([7.0] * 8)
    state = optimizer.state[experts.down_bias]
    assert not state["exp_avg"][1].any() and not state["exp_avg_sq"][1].any() and state["exp_avg"][0].any()
