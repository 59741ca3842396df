"""Clauses about training: stability under the shipped optimizer recipes, and two ranks that equal one."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from omegaconf import OmegaConf
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from bouton.config.paths import conf_dir
from bouton.mechanisms import registry
from bouton.mechanisms.base import Mechanism
from bouton.models.build import build
from bouton.testing.arms import Arm, sample_starts, sample_tokens
from bouton.testing.clauses import clause, loss_of
from bouton.training.optimizers import build_optimizer

STEPS = 1000


@clause("mechanism")
def a_thousand_steps_stay_finite(arm: Arm) -> None:
    """1,000 steps under each shipped optimizer recipe end with a finite loss below that of the first step."""
    for recipe in sorted((conf_dir() / "optimizer").glob("*.yaml")):
        options: Any = OmegaConf.to_container(OmegaConf.load(recipe))
        model = build(arm.config(num_layers=1, full_attention_every=None))
        optimizer = build_optimizer(options, model)
        losses = []
        for step in range(STEPS):
            optimizer.zero_grad()
            loss = loss_of(model, sample_tokens(step % 4, batch=1, length=12))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            model.commit_observations(lambda sums: sums)
            optimizer.step()
            model.restructure(optimizer)
            losses.append(loss.item())
            if not loss.isfinite():
                raise AssertionError(f"loss is {loss.item()} at step {step} under {recipe.stem}")
        if not sum(losses[-4:]) < sum(losses[:4]):
            raise AssertionError(f"under {recipe.stem} the loss went from {losses[0]:.3f} to {losses[-1]:.3f}")


def two_ranks_equal_one(arms: list[Arm]) -> None:
    """Train every arm for a few steps on two ranks and on one with twice the batch; organism state included.

    Raises:
        AssertionError: weights or buffers differ by more than rounding.
    """
    with tempfile.TemporaryDirectory() as folder:
        # A mechanism that another module registered: unpickling its class in the new process imports that module.
        classes = [registry.get(name) for name in sorted({name for arm in arms for name in arm.names})]
        spawn(_train_rank, args=(2, folder, arms, classes), nprocs=2)
        ranks = [torch.load(Path(folder) / f"rank{rank}.pt") for rank in range(2)]
    for index, arm in enumerate(arms):
        alone = _train(arm, rank=0, world=1)
        for rank, results in enumerate(ranks):
            for name, tensor in results[index].items():
                error = (tensor - alone[name]).abs().max().item() if tensor.numel() else 0.0
                if not error <= 1e-10:
                    raise AssertionError(
                        f"{arm.label}: {name} on rank {rank} of 2 differs from one rank by {error:.3g}"
                    )


def _train_rank(rank: int, world: int, folder: str, arms: list[Arm], classes: list[type[Mechanism]]) -> None:
    torch.set_num_threads(1)
    store = f"file://{Path(folder) / 'rendezvous'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    torch.save([_train(arm, rank, world) for arm in arms], Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()


def _train(arm: Arm, rank: int, world: int, batch: int = 4) -> dict[str, Tensor]:
    def reduce(sums: Tensor) -> Tensor:
        if world > 1:
            dist.all_reduce(sums)
        return sums

    model = arm.build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    share = batch // world
    for step in range(3):
        rows = slice(rank * share, (rank + 1) * share)
        tokens, starts = sample_tokens(step, batch=batch)[rows], sample_starts(step, batch=batch)[rows]
        optimizer.zero_grad()
        loss_of(model, tokens, starts, torch.arange(batch)[rows]).backward()
        for p in model.parameters():
            if p.grad is not None:
                p.grad = reduce(p.grad) / world
        model.commit_observations(reduce)
        optimizer.step()
        model.restructure(optimizer)
    return {name: tensor.detach() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
