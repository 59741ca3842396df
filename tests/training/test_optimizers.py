"""Parameter groups, several optimizers as one, and stability of the shipped recipes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import standins
import torch
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import LambdaLR

from bouton.errors import ConfigError
from bouton.training.optimizers import CombinedOptimizer, build_optimizer, hidden_matrices, hidden_stacks


def recipe(name: str, /, **changes: Any) -> dict[str, Any]:
    return {**standins.config(standins.CONF, optimizer=name)["optimizer"], **changes}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.hidden = nn.Linear(6, 4)
        self.table = nn.Parameter(torch.randn(2, 3))
        self.cube = nn.Parameter(torch.randn(2, 3, 4))
        self.exempt = nn.Linear(4, 4, bias=False)
        self.exempt.weight._no_weight_decay = True  # type: ignore[assignment]
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.head = nn.Linear(4, 11, bias=False)


def names(model: nn.Module, group: dict[str, Any]) -> set[str]:
    known = {id(p): n for n, p in model.named_parameters()}
    return {known[id(p)] for p in group["params"]}


def test_adamw_decays_matrices_only() -> None:
    model = Model()
    groups = build_optimizer(recipe("adamw"), model).param_groups
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0]
    assert names(model, groups[0]) == {"embedding.weight", "hidden.weight", "table", "cube", "head.weight"}
    assert names(model, groups[1]) == {"hidden.bias", "exempt.weight"}


def test_muon_takes_hidden_matrices_and_adamw_the_rest() -> None:
    model = Model()
    assert hidden_matrices(model) == ["hidden.weight", "exempt.weight"]
    optimizer = build_optimizer(recipe("muon"), model)
    groups = optimizer.param_groups
    assert [names(model, g) for g in groups] == [
        {"hidden.weight"},
        {"exempt.weight"},
        {"embedding.weight", "table", "cube", "head.weight"},
        {"hidden.bias"},
    ]
    assert [(g["lr"], g["weight_decay"]) for g in groups] == [(0.02, 0.1), (0.02, 0.0), (0.003, 0.1), (0.003, 0.0)]


def test_muon_takes_a_hidden_layer_as_wide_as_the_vocabulary() -> None:
    model = nn.Module()
    model.hidden, model.head = nn.Linear(6, 11), nn.Linear(11, 11)
    assert hidden_matrices(model) == ["hidden.weight"]


@pytest.mark.parametrize("shape", [(3, 6, 4), (3, 4, 6)])
@pytest.mark.parametrize("changes", [{}, {"adjust_lr": "match_rms_adamw", "nesterov": False}])
def test_a_stack_of_matrices_is_trained_like_each_on_its_own(shape: tuple[int, ...], changes: dict[str, Any]) -> None:
    class Stack(nn.Module):
        matrix_stacks = ("weight", "absent")
        absent = None

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0)))

    stack = Stack()
    alone = nn.ModuleList(nn.Linear(shape[2], shape[1], bias=False) for _ in range(3))
    with torch.no_grad():
        for matrix, linear in zip(stack.weight, alone, strict=True):
            linear.weight.copy_(matrix)  # type: ignore[operator]
    assert hidden_stacks(stack) == ["weight"]
    optimizers = [build_optimizer(recipe("muon", **changes), model) for model in (stack, alone)]
    for step in range(3):
        gradient = torch.randn(shape, generator=torch.Generator().manual_seed(1 + step))
        stack.weight.grad = gradient.clone()
        for row, linear in zip(gradient, alone, strict=True):
            linear.weight.grad = row.clone()  # type: ignore[union-attr]
        for optimizer in optimizers:
            optimizer.step()
    expected = torch.stack([linear.weight for linear in alone])  # type: ignore[misc]
    torch.testing.assert_close(stack.weight, expected, rtol=0, atol=2e-3)  # the update, about 0.06, is in bfloat16
    assert (stack.weight.detach() - expected).abs().mean() < 2e-4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 1.0}, r"optimizer\.learning_rate is unknown.*lr"),
        ({"lr": -1.0}, r"optimizer\.lr = -1\.0 is not valid: a number > 0"),
        ({"betas": [0.9, 1.0]}, r"optimizer\.betas = 1\.0"),
        ({"weight_decay": "much"}, r"optimizer\.weight_decay = 'much'"),
        ({"name": "adam"}, r"optimizer\.name = 'adam' is unknown.*adamw"),
    ],
)
def test_bad_fields_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_optimizer(recipe("adamw", **changes), Model())


def pair(seed: int) -> tuple[nn.Linear, nn.Linear]:
    generator = torch.Generator().manual_seed(seed)
    layers = (nn.Linear(3, 3).double(), nn.Linear(3, 3).double())
    for p in (*layers[0].parameters(), *layers[1].parameters()):
        p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64)
    return layers


def combined(layers: tuple[nn.Linear, nn.Linear]) -> CombinedOptimizer:
    return CombinedOptimizer(
        [
            SGD(layers[0].parameters(), lr=0.1, momentum=0.9),
            AdamW(layers[1].parameters(), lr=0.01),
        ]
    )


def step(optimizer: torch.optim.Optimizer, layers: tuple[nn.Linear, nn.Linear]) -> None:
    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = layers[1](layers[0](torch.ones(2, 3, dtype=torch.float64))).square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    assert optimizer.step(closure) is not None  # type: ignore[arg-type]


def test_a_combined_optimizer_is_its_children_under_one_schedule() -> None:
    one, two = pair(0), pair(0)
    joint, children = combined(one), combined(two).children
    schedule = LambdaLR(joint, lambda s: 1 / (1 + s))
    for i in range(4):
        step(joint, one)
        schedule.step()
        loss = two[1](two[0](torch.ones(2, 3, dtype=torch.float64))).square().sum()
        for child in children:
            child.zero_grad()
        loss.backward()
        for child, rate in zip(children, (0.1, 0.01), strict=True):
            child.param_groups[0]["lr"] = rate / (1 + i)
            child.step()
    for a, b in zip(
        (*one[0].parameters(), *one[1].parameters()), (*two[0].parameters(), *two[1].parameters()), strict=True
    ):
        assert torch.equal(a, b)


def test_a_combined_optimizer_round_trips_its_state() -> None:
    one, two = pair(0), pair(1)
    first, second = combined(one), combined(two)
    for _ in range(3):
        step(first, one)
    for a, b in zip(one, two, strict=True):
        b.load_state_dict(a.state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert len(second.state_dict()["state"]) == 4
    second.param_groups[0]["lr"] = first.param_groups[0]["lr"] = 0.05  # reaches the child after loading, too
    for _ in range(3):
        step(first, one)
        step(second, two)
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a.weight, b.weight) and torch.equal(a.bias, b.bias)


@pytest.mark.parametrize("name", sorted(p.stem for p in (standins.CONF / "optimizer").glob("*.yaml")))
def test_a_thousand_steps_of_a_shipped_recipe_learn_and_stay_finite(name: str) -> None:
    torch.manual_seed(0)
    body = standins.TinyBody(width=8, dropout=0.0)
    optimizer = build_optimizer(recipe(name), body)
    losses = []
    rows = [standins.sample(i, 6, False) for i in range(16)]
    batch = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
    for _ in range(1000):
        optimizer.zero_grad()
        logits, _ = body(batch["tokens"])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())
        loss.backward()
        body.commit_observations(lambda x: x)
        optimizer.step()
        losses.append(loss.item())
    assert all(torch.isfinite(p).all() for p in body.parameters())
    assert losses[-1] < 0.6 * losses[0]
