"""moe: its economy by hand, the balance that follows from it, one expert as the plain block, and runs with events."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor

from bouton.errors import ConfigError, SocketError
from bouton.evaluation.tasks.experts import _groups
from bouton.mechanisms.lifecycle import merge, split
from bouton.mechanisms.moe import Moe, MoeParams
from bouton.models.body import Body
from bouton.models.build import build
from bouton.testing.arms import PLAIN, Arm, sample_starts, sample_tokens
from bouton.testing.clauses import loss_of
from bouton.training.module import TrainingModule

LIVELY = Moe.variants["lively"]


def model_with(**values: Any) -> tuple[Body, Moe]:
    body = Arm("moe", {"moe": values}).build()
    moe = body.mechanisms["moe"]
    assert isinstance(moe, Moe)
    return body, moe


def commit(body: Body, seed: int = 0) -> None:
    body(sample_tokens(seed, batch=4))
    body.commit_observations(lambda sums: sums)


def test_use_is_the_share_of_the_tokens_and_makes_the_bias() -> None:
    body, moe = model_with(income=0.3, tau_fatigue=4.0, b_energy=0.5, b_fatigue=1.5)
    choices: list[Tensor] = []
    moe.parts[1].router.register_forward_hook(lambda m, i, out: choices.append(out[0].experts))
    assert moe.bias(1).abs().max() < 1e-6
    commit(body)
    use = torch.bincount(choices[0].flatten(), minlength=8) / choices[0].numel() * 4
    torch.testing.assert_close(moe.expert_use[1].float(), use)
    assert use.sum() == 4 and use[4:].sum() == 0
    rho = math.exp(-1 / 4)
    energy, fatigue = 1 + 0.3 * (use - 1), rho + (1 - rho) * use
    expected = 0.5 * (energy - 1) - 1.5 * (fatigue - 1)
    torch.testing.assert_close(moe.bias(1)[:4].float(), expected[:4])
    commit(body, seed=1)
    torch.testing.assert_close(moe.expert_energy[1, :4].float(), energy[:4])
    torch.testing.assert_close(moe.expert_fatigue[1, :4].float(), fatigue[:4])


def test_the_economy_balances_a_lopsided_router() -> None:
    """Without training, from the bias alone: the Gini coefficient of the load falls to less than half."""
    body, moe = model_with(experts=8, top_k=1, b_fatigue=3.0)
    with torch.no_grad():
        for part in moe.parts:
            part.router.weight.mul_(0.3)

    def gini() -> float:
        share = moe.expert_use.sort().values / 8
        rank = torch.arange(1, 9)
        return float(((2 * rank - 9) * share).sum(-1).mean() / 8)

    commit(body)
    first = gini()
    for _ in range(150):
        commit(body)
    assert gini() < 0.5 * first and moe.expert_use.min() > 0.3


def test_one_expert_is_the_plain_block() -> None:
    """With one living expert of several slots too, to rounding: it starts from the same weights."""
    tokens = sample_tokens()
    plain = PLAIN.build()(tokens)[0]
    body, moe = model_with(max_experts=3, experts=1, top_k=1)
    torch.testing.assert_close(body(tokens)[0], plain, rtol=0, atol=1e-12)
    with torch.no_grad():
        split(moe, 0, 0, None)
    torch.testing.assert_close(body(tokens)[0], plain, rtol=0, atol=1e-12)


def test_the_balance_loss_is_the_fatigue_that_is_chosen() -> None:
    body, moe = model_with(balance=0.5, top_k=2)
    with torch.no_grad():
        moe.expert_use[:] = moe.expert_fatigue[:] = torch.tensor([3.0, 1, 0.5, 0.5, 0, 0, 0, 0])
    probabilities: list[Tensor] = []
    for part in moe.parts:
        part.router.register_forward_hook(lambda m, i, out: probabilities.append(out[0].probabilities))
    body(sample_tokens())
    term = body.auxiliary_loss()
    expected = 0.5 * torch.stack([(p @ moe.expert_fatigue[0]).mean() for p in probabilities]).mean()
    assert term is not None
    torch.testing.assert_close(term, expected)
    term.backward()
    step = moe.parts[0].router.weight.grad
    assert step is not None and step[0].norm() > 0
    assert body.auxiliary_loss() is None  # counted once


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"experts": 9}, "experts = 9 is more than max_experts = 8"),
        ({"top_k": 5}, "top_k = 5 is more than experts = 4"),
        ({"b_energy": 2.0}, "b_fatigue = 1.0 is less than b_energy = 2.0"),
        ({"merge_energy": 2.5}, "merge_energy = 2.5 is not less than split_energy = 2.0"),
    ],
)
def test_parameters_that_contradict_each_other_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MoeParams(**values)


def test_another_mixer_is_refused_by_name() -> None:
    with pytest.raises(SocketError, match="'dendrite' and 'moe' both need the exclusive socket 'mixer'"):
        build(Arm("both", {"moe": {}, "dendrite": {}}).config())


def test_a_copy_and_a_checkpoint_have_the_trees_of_the_original() -> None:
    body, moe = model_with(experts=2, top_k=1)
    with torch.no_grad():
        split(moe, 0, 0, None)
        split(moe, 0, 2, None)
    tokens = sample_tokens()
    expected = body(tokens)[0]
    twin = copy.deepcopy(body)
    assert torch.equal(twin(tokens)[0], expected)
    with torch.no_grad():
        merge(moe, 0, 0, 1, None)
        moe.expert_energy[0, 1] = 3.0
    assert torch.equal(twin(tokens)[0], expected) and not torch.equal(body(tokens)[0], expected)
    fresh, other = model_with(experts=2, top_k=1)
    fresh(tokens)  # it has looked at its own trees
    fresh.load_state_dict(twin.state_dict())
    assert torch.equal(fresh(tokens)[0], expected) and other.tree(0).alive == [0, 1, 2, 3]


def test_the_evaluation_of_experts_finds_them() -> None:
    body, moe = model_with(experts=2, top_k=1)
    commit(body)
    with torch.no_grad():
        split(moe, 1, 0, None)
    (groups,) = _groups(SimpleNamespace(model=body)).values()  # type: ignore[arg-type]
    assert set(groups) == {"expert_use", "expert_alive", "expert_energy", "expert_fatigue"}
    assert groups["expert_alive"].sum(1).tolist() == [2, 3]
    assert groups["expert_use"].sum(1).tolist() == pytest.approx([2, 2])


def test_flops_count_the_experts_that_a_token_has() -> None:
    plain = PLAIN.build().flops_per_token(10)
    hidden, width = 16, 32
    for top_k, places in ((1, 1), (2, 2), (0, 4)):
        body, _ = model_with(top_k=top_k)
        per_block = 2 * 2 * hidden * width
        assert body.flops_per_token(10) - plain == 2 * (per_block * (places - 1) + 2 * hidden * 8)


def test_the_training_module_restructures_once_per_step_after_the_update(monkeypatch: pytest.MonkeyPatch) -> None:
    body, moe = model_with()
    module = TrainingModule(
        body,
        optimizer={"name": "adamw", "lr": 0.1, "weight_decay": 0.0, "betas": [0.9, 0.9], "eps": 1e-8},
        schedule={"name": "constant", "warmup_steps": 0},
        max_steps=1,
        targets_per_batch=1,
        token_bytes=torch.ones(29),
    )
    optimizer = torch.optim.SGD(body.parameters(), lr=0.1)
    loss_of(body, sample_tokens()).backward()
    before = moe.parts[0].experts.up.detach().clone()
    seen: list[tuple[Any, bool]] = []

    def restructure(optimizer: Any) -> None:
        seen.append((optimizer, torch.equal(before, moe.parts[0].experts.up)))

    monkeypatch.setattr(body, "restructure", restructure)
    wrapped = LightningOptimizer(optimizer)
    monkeypatch.setattr(wrapped, "step", lambda closure=None: optimizer.step())
    module.optimizer_step(0, 0, wrapped)
    assert seen == [(optimizer, False)]


@pytest.mark.slow
def test_a_run_with_splits_and_merges_resumes_and_keeps_its_lineage(tmp_path: Path) -> None:
    import bouton
    from bouton.training import train

    def run(folder: str, steps: int, *more: str) -> Path:
        settings = [f"mechanism.moe.{name}={value}" for name, value in LIVELY.items()]
        train(
            bouton.compose(
                "mechanism=moe+genome+neuroscore", "model=tiny", "data=mqar", f"run_dir={tmp_path / folder}",
                "model.num_layers=1", "model.hidden_size=16", "model.num_heads=2", "data.batch_size=2",
                "trainer.accelerator=cpu", f"trainer.max_steps={steps}", "trainer.val_every=3", "trainer.val_batches=1",
                "schedule=constant", *settings, *more,
            )
        )  # fmt: skip
        return tmp_path / folder

    whole = run("whole", 9)
    part = run("part", 6)
    run("part", 9, "ckpt_path=last")
    lineage = json.loads((whole / "lineage.json").read_text())["blocks"][0]
    assert json.loads((part / "lineage.json").read_text())["blocks"][0] == lineage
    children = [one for one in lineage if one["parent"] is not None]
    assert children and all(0 < one["born"] <= 9 for one in children)
    assert any(one["died"] and one["merged_into"] is not None for one in lineage)
    states = [torch.load(f / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for f in (whole, part)]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_starts_do_not_matter_to_the_router() -> None:
    """What a token's experts are follows from the token's vector alone: no statistic enters the forward pass."""
    body, _ = model_with(top_k=1)
    tokens, starts = sample_tokens(), sample_starts()
    together = body(tokens, starts=starts)[0]
    alone = torch.cat([body(tokens[i : i + 1], starts=starts[i : i + 1])[0] for i in range(2)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-13)
