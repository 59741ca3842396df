"""Experts computed together equal experts computed one by one; what the sockets of their hidden layer see."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bouton.models.context import Context
from bouton.models.experts import Dispatch, Experts, can_pack
from bouton.models.initialize import initialize
from bouton.models.mixers import MLP
from bouton.models.router import Choice
from bouton.models.transformer import TransformerConfig

B, T, SLOTS = 2, 7, 5


class Host(nn.Module):
    """Holds the experts under the place that they have in a block."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = nn.ModuleDict({"experts": part}) if isinstance(part, Experts) else part


def config(**values: Any) -> TransformerConfig:
    return TransformerConfig(hidden_size=8, mixer_ratio=1.5, **values)


def experts_with(places: int = 2, **values: Any) -> Experts:
    experts = Experts(config(**values), 0, SLOTS, places)
    initialize(Host(experts), 0)
    experts.double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for stack in experts.stacks():
            stack.copy_(0.5 * torch.randn(stack.shape, generator=generator, dtype=torch.float64))
    return experts


def sample(k: int, avoid: int | None = None) -> tuple[Tensor, Choice]:
    generator = torch.Generator().manual_seed(k)
    x = torch.randn(B, T, 8, dtype=torch.float64, generator=generator)
    scores = torch.rand(B, T, SLOTS, generator=generator)
    if avoid is not None:
        scores[..., avoid] = -1
    gates = torch.rand(B, T, k, dtype=torch.float64, generator=generator).requires_grad_()
    return x.requires_grad_(), Choice(scores.topk(k).indices, gates, lambda: torch.empty(0))


def reference(experts: Experts, x: Tensor, choice: Choice) -> Tensor:
    """Token by token, place by place."""

    def linear(name: str, e: int, v: Tensor) -> Tensor:
        bias = getattr(experts, f"{name}_bias")
        return F.linear(v, getattr(experts, name)[e], None if bias is None else bias[e])

    rows = []
    for b in range(B):
        for t in range(T):
            total = torch.zeros(8, dtype=torch.float64)
            for j, e in enumerate(choice.experts[b, t].tolist()):
                hidden = linear("up", e, x[b, t])
                if experts.gate is None:
                    hidden = F.relu(hidden).square()
                else:
                    hidden = F.silu(linear("gate", e, x[b, t])) * hidden
                total = total + choice.gates[b, t, j] * linear("down", e, hidden)
            rows.append(total)
    return torch.stack(rows).view(B, T, 8)


@pytest.mark.parametrize("values", [{}, {"bias": True}, {"activation": "swiglu", "bias": True}])
@pytest.mark.parametrize(("k", "avoid"), [(1, None), (2, 3), (SLOTS, None)])
def test_equal_to_experts_one_by_one(values: dict[str, Any], k: int, avoid: int | None) -> None:
    experts = experts_with(k, **values)
    x, choice = sample(k, avoid)
    results = []
    for y in (experts(x, choice, Context(torch.arange(T)[None]), None)[0], reference(experts, x, choice)):
        wanted = [x, choice.gates, *experts.stacks()]
        results.append((y, *torch.autograd.grad(y.square().sum(), wanted)))
    for mine, expected in zip(*results, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("values", [{}, {"bias": True}, {"activation": "swiglu", "bias": True}])
@pytest.mark.parametrize(("k", "avoid"), [(1, None), (2, 3)])
def test_packed_equals_padded(values: dict[str, Any], k: int, avoid: int | None) -> None:
    exact = experts_with(k, **values)
    low = copy.deepcopy(exact).float()
    x, choice = sample(k, avoid)
    half = Choice(choice.experts, choice.gates.detach().float().requires_grad_(), choice.distribution)
    assert can_pack(x.float(), 8, low.width) and not can_pack(x, 8, low.width) and not can_pack(x.float(), 8, 6)
    results = []
    for experts, inputs, chosen in ((low, x.detach().float().requires_grad_(), half), (exact, x, choice)):
        y, _, dispatch = experts(inputs, chosen, Context(torch.arange(T)[None]), None)
        assert (dispatch.ends is None) == (experts is exact)
        results.append((y, *torch.autograd.grad(y.square().sum(), [inputs, chosen.gates, *experts.stacks()])))
    for packed, padded in zip(*results, strict=True):
        torch.testing.assert_close(packed.double(), padded, rtol=1e-4, atol=1e-4)


def test_rows_are_sorted_by_expert_and_padded_to_the_largest_load() -> None:
    dispatch = Dispatch.of(torch.tensor([[3, 1, 3], [3, 0, 1]]), 4)
    assert dispatch.expert is not None and dispatch.expert.tolist() == [0, 1, 3] and dispatch.load == 3
    assert dispatch.counts.tolist() == [1, 2, 0, 3]
    assert dispatch.row.tolist() == [6, 3, 7, 8, 0, 4]
    assert dispatch.place.tolist() == [4, 0, 0, 1, 5, 0, 0, 2, 3]
    assert Dispatch.of(torch.arange(4), 4).expert is None


def test_the_first_expert_starts_as_the_plain_block() -> None:
    for activation in ("relu2", "swiglu"):
        plain, experts = MLP(config(activation=activation), 0), Experts(config(activation=activation), 0, SLOTS, 1)
        initialize(Host(plain), 3)
        initialize(Host(experts), 3)
        assert torch.equal(experts.up[0], plain.up.linear.weight)
        assert torch.equal(experts.down[0], plain.tail.down.linear.weight)
        if plain.gate is not None and experts.gate is not None:
            assert torch.equal(experts.gate[0], plain.gate.weight)
        assert not torch.equal(experts.up[1], experts.up[0])


def test_gates_and_branches_see_one_vector_per_token() -> None:
    experts = experts_with(2)
    x, choice = sample(2)
    context = Context(torch.arange(T)[None])
    before = experts(x, choice, context, None)[0]
    seen: dict[str, Tensor] = {}

    class Gate(nn.Module):
        def forward(self, hidden: Tensor, ctx: Context) -> Tensor:
            assert hidden.shape == (B, T, 12)
            return hidden * 2

    class Branch(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, x: Tensor, y: Tensor, ctx: Context, state: Any) -> tuple[Tensor, dict[str, Tensor]]:
            seen[f"{self.name}_x"], seen[f"{self.name}_y"] = x, y
            return torch.zeros_like(y) if self.name == "up" else torch.ones_like(y), {"count": torch.ones(B)}

    class Mechanism:
        name = "stand_in"

    for socket, part in (
        (experts.gates, Gate()),
        (experts.up_branch, Branch("up")),
        (experts.down_branch, Branch("down")),
    ):
        assert experts.units_are_exchangeable() == (socket is experts.gates)
        socket.plug(Mechanism(), part)  # type: ignore[arg-type]
    after, state, _ = experts(x, choice, context, None)
    torch.testing.assert_close(after, 2 * before + 1, rtol=1e-12, atol=1e-12)
    assert set(state) == {"up", "down"} and set(state["up"]["stand_in"]) == {"count"}
    assert torch.equal(seen["up_x"], x)
    drives = torch.stack([F.linear(x, experts.up[e]) for e in range(SLOTS)], 2)
    index = choice.experts.unsqueeze(-1).expand(-1, -1, -1, 12)
    share = choice.gates / choice.gates.sum(-1, keepdim=True)
    mean = (drives.gather(2, index) * share.unsqueeze(-1)).sum(2)
    torch.testing.assert_close(seen["up_y"], mean, rtol=1e-12, atol=1e-12)
    assert seen["down_x"].shape == (B, T, 12)
    torch.testing.assert_close(seen["down_y"], 2 * before, rtol=1e-12, atol=1e-12)


def test_flops_are_those_of_the_experts_that_a_token_has() -> None:
    assert experts_with(2).flops_per_token(10) == 2 * 2 * 2 * 8 * 12
    assert experts_with(1, activation="swiglu").flops_per_token(10) == 2 * 3 * 8 * 8
