"""Splits leave the function as it is, twins diverge, merges conserve; two ranks decide and compute as one."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from bouton.mechanisms.lifecycle import merge, split
from bouton.mechanisms.moe import Moe
from bouton.models.body import Body
from bouton.models.build import build
from bouton.testing.arms import Arm, sample_starts, sample_tokens
from bouton.testing.clauses import loss_of

LIVELY = {"income": 0.9, "patience": 1, "split_energy": 1.1, "merge_energy": 0.9, "experts": 6, "top_k": 1}


def model_with(double: bool = True, others: dict[str, Any] | None = None, **values: Any) -> tuple[Body, Moe]:
    arm = Arm("moe", {"moe": values, **(others or {})})
    body = arm.build() if double else build(arm.config())
    moe = body.mechanisms["moe"]
    assert isinstance(moe, Moe)
    return body, moe


def train(body: Body, optimizer: torch.optim.Optimizer, steps: int, first: int = 0, batch: int = 2) -> None:
    for step in range(first, first + steps):
        optimizer.zero_grad()
        loss_of(body, sample_tokens(step, batch=batch), sample_starts(step, batch=batch)).backward()
        body.commit_observations(lambda sums: sums)
        optimizer.step()
        body.restructure(optimizer)


@torch.no_grad()
def test_the_largest_change_of_a_split() -> None:
    """The issue asks for less than 1e-5 relative; it is rounding, in either precision, with nested splits."""
    for double, limit in ((True, 1e-14), (False, 1e-6)):
        for top_k in (1, 2, 0):
            body, moe = model_with(double, top_k=top_k)
            optimizer = torch.optim.AdamW(body.parameters(), lr=1e-2)
            with torch.enable_grad():
                train(body, optimizer, 3)  # energies and fatigues that differ, moments
            tokens = sample_tokens(50, batch=8)
            before = body(tokens)[0]
            for expert in (1, 1, 5, 0):
                for index in range(2):
                    split(moe, index, expert, optimizer)
                after = body(tokens)[0]
                assert (after - before).abs().max() / before.abs().max() < limit, (double, top_k, expert)
            assert moe.routes(0).alive == 8 and moe.routes(0).depth == 3
            experts = {e for part in moe.parts for e in _used(part, body, tokens)}
            assert len(experts) > 4  # clones do work


def _used(part: Any, body: Body, tokens: Tensor) -> set[int]:
    seen: set[int] = set()
    handle = part.router.register_forward_hook(lambda m, i, out: seen.update(out[0].experts.flatten().tolist()))
    body(tokens)
    handle.remove()
    return seen


def test_a_clone_inherits_moments_and_diverges() -> None:
    body, moe = model_with(experts=2, top_k=1)
    optimizer = torch.optim.AdamW(body.parameters(), lr=1e-2)
    train(body, optimizer, 3, batch=8)
    energy = moe.expert_energy.clone()
    with torch.no_grad():
        split(moe, 0, 0, optimizer)
    experts, router = moe.parts[0].experts, moe.parts[0].router
    for stack in experts.stacks():
        for tensor in (stack, optimizer.state[stack]["exp_avg"], optimizer.state[stack]["exp_avg_sq"]):
            assert torch.equal(tensor[2], tensor[0]) and tensor[0].any()
    assert not optimizer.state[router.weight]["exp_avg"][8].any() and router.weight[8].any()
    assert moe.expert_energy[0, 0] == moe.expert_energy[0, 2] == energy[0, 0] / 2
    assert torch.equal(moe.expert_energy[1], energy[1])
    assert moe.individuals[0, 2].tolist() == [2, 0, 3] and moe.splits.tolist() == [1, 0]
    train(body, optimizer, 5, first=3, batch=8)
    assert not torch.allclose(experts.up[2], experts.up[0], atol=1e-3)


@torch.no_grad()
def test_a_split_and_the_merge_of_its_twins_cancel() -> None:
    body, moe = model_with(top_k=2)
    tokens, before = sample_tokens(), body(sample_tokens())[0]
    saved = copy.deepcopy(body.state_dict())
    split(moe, 0, 1, None)
    merge(moe, 0, 4, 1, None)
    assert torch.allclose(body(tokens)[0], before, rtol=0, atol=1e-12)
    for name, tensor in body.state_dict().items():
        if name.endswith(("entry", "nodes", "expert_alive", "experts.up")):
            kept = [0, 1, 2, 3] if name.endswith("up") else slice(None)
            assert torch.allclose(tensor[kept], saved[name][kept], rtol=0, atol=1e-15), name
    assert moe.expert_energy[0].tolist() == [1, 1, 1, 1, 0, 1, 1, 1]  # slots without an expert keep what they had


@torch.no_grad()
def test_the_merge_of_a_root_takes_its_row_along() -> None:
    _, moe = model_with(top_k=2)
    moe.expert_fatigue[0] = torch.tensor([0.1, 0.3, 1, 1, 1, 1, 1, 1])
    moe.expert_energy[0] = torch.tensor([0.1, 0.5, 1, 1, 1, 1, 1, 1])
    weight = moe.parts[0].router.weight.detach().clone()
    merge(moe, 0, 0, 1, None)
    torch.testing.assert_close(moe.parts[0].router.weight[1], 0.25 * weight[0] + 0.75 * weight[1])
    assert moe.expert_energy[0, 1] == pytest.approx(0.6) and moe.expert_fatigue[0, 1] == pytest.approx(0.4)
    assert moe.expert_alive[0].tolist() == [0, 1, 1, 1, 0, 0, 0, 0] and moe.routes(0).roots == (1, 2, 3)
    assert moe.individuals[0, 0].tolist() == [-1, -1, -1] and moe.merges.tolist() == [1, 0]


def test_patience_limits_and_the_experts_that_must_remain() -> None:
    body, moe = model_with(experts=4, max_experts=5, top_k=2, patience=3)
    optimizer = torch.optim.SGD(body.parameters(), lr=0.0)
    for step in range(1, 4):
        with torch.no_grad():
            moe.expert_energy[:] = torch.tensor([3.0, 0.1, 0.2, 0.15, 0])
            moe.expert_use[:] = moe.expert_energy  # at rest
        body(sample_tokens())
        moe.commit_observations(lambda sums: sums)
        assert moe.want[0].tolist() == [0, step, step, step, 0] and moe.wealth[0].tolist() == [step, 0, 0, 0, 0]
        body.restructure(optimizer)
        assert moe.splits.tolist() == moe.merges.tolist() == ([1, 1] if step == 3 else [0, 0])
    # The poorest went first, its slot was taken by the clone of the rich; the counters of those concerned began again.
    assert moe.tree(0).alive == [0, 1, 2, 3] and moe.tree(0).entry[1] == -1 and moe.tree(0).root_of(1) == 0
    assert sorted(moe.want[0].tolist())[-2:] in ([0, 3], [3, 3]) and not moe.wealth.any()
    with torch.no_grad():
        moe.want.fill_(9.0)
        moe.wealth.zero_()
        for _ in range(9):
            body.restructure(optimizer)
            moe.want.fill_(9.0)
    assert moe.routes(0).alive == 2  # not fewer than two, nor than k


def test_experts_split_and_merge_while_training() -> None:
    body, moe = model_with(**LIVELY)
    train(body, torch.optim.AdamW(body.parameters(), lr=1e-2), 12)
    assert (moe.splits > 0).all() and (moe.merges > 0).all()
    for index in range(2):
        tree = moe.tree(index)
        assert moe.expert_alive[index].nonzero().flatten().tolist() == tree.alive
        assert (moe.individuals[index, :, 0] >= 0).nonzero().flatten().tolist() == tree.alive


@pytest.mark.parametrize("others", [(), ("genome", "neuroscore")])
def test_two_ranks_decide_and_compute_as_one(others: tuple[str, ...]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        spawn(_rank, args=(2, folder, others), nprocs=2)
        ranks = [torch.load(Path(folder) / f"{rank}.pt") for rank in range(2)]
    alone = _lively(0, 1, others)
    assert int(alone["mechanisms.moe.splits"].sum()) >= 4 and int(alone["mechanisms.moe.merges"].sum()) >= 4
    for result in ranks:
        for name, tensor in result.items():
            if tensor.is_floating_point():
                assert (tensor - alone[name]).abs().max() < 1e-10, name
            else:
                assert torch.equal(tensor, alone[name]), name
    assert all(torch.equal(tensor, ranks[1][name]) for name, tensor in ranks[0].items())


def _rank(rank: int, world: int, folder: str, others: tuple[str, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    torch.save(_lively(rank, world, others), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def _lively(rank: int, world: int, others: tuple[str, ...]) -> dict[str, Tensor]:
    def reduce(sums: Tensor) -> Tensor:
        if world > 1:
            dist.all_reduce(sums)
        return sums

    body, _ = model_with(others={name: {} for name in others}, **LIVELY)
    optimizer = torch.optim.SGD(body.parameters(), lr=0.1, momentum=0.9)
    share = 4 // world
    for step in range(8):
        rows = slice(rank * share, (rank + 1) * share)
        optimizer.zero_grad()
        loss_of(body, sample_tokens(step, batch=4)[rows]).backward()
        for parameter in body.parameters():
            assert parameter.grad is not None
            parameter.grad = reduce(parameter.grad) / world
        body.commit_observations(reduce)
        optimizer.step()
        body.restructure(optimizer)
    return {name: tensor.detach().clone() for name, tensor in body.state_dict().items()}
