"""neuroscore: contribution against the loss without the expert, the three measures by hand, and what they decide."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bouton.errors import ConfigError
from bouton.mechanisms.lifecycle import split, step
from bouton.mechanisms.moe import Moe
from bouton.mechanisms.neuroscore import Neuroscore, NeuroscoreParams, ranks
from bouton.models.body import Body
from bouton.testing.arms import Arm, sample_tokens
from bouton.testing.clauses import loss_of


def model_with(moe: dict[str, Any] | None = None, **values: Any) -> tuple[Body, Moe, Neuroscore]:
    body = Arm("neuroscore", {"moe": moe or {}, "neuroscore": values}).build()
    experts, scores = body.mechanisms["moe"], body.mechanisms["neuroscore"]
    assert isinstance(experts, Moe) and isinstance(scores, Neuroscore)
    return body, experts, scores


def observe(body: Body, seed: int = 0) -> None:
    loss_of(body, sample_tokens(seed, batch=4)).backward()
    body.commit_observations(lambda sums: sums)


def test_ranks_count_equal_values_half() -> None:
    assert ranks(torch.tensor([3.0, 1.0, 2.0])).tolist() == [1.0, 0.0, 0.5]
    assert ranks(torch.tensor([5.0, 5.0, 5.0])).tolist() == [0.5] * 3
    assert ranks(torch.tensor([1.0, 1.0, 100.0])).tolist() == [0.25, 0.25, 1.0]
    assert ranks(torch.tensor([7.0])).tolist() == [0.5]


def test_the_contribution_is_the_rise_of_the_loss_without_the_expert() -> None:
    """To first order: against the loss with the expert's gate lowered by a thousandth of itself."""
    body, moe, scores = model_with({"top_k": 0}, tau=1.0)
    tokens = sample_tokens(0, batch=4)
    loss_of(body, tokens).backward()
    body.commit_observations(lambda sums: sums)
    seen = scores.contribution[0, :4] / (1 - 2.718281828459045**-1)  # the mean began at 0
    lowered = 0

    def lower(module: Any, args: Any, result: Any) -> Any:
        choice, state = result
        factor = torch.where(choice.experts == lowered, 1 - 1e-4, 1.0)
        return type(choice)(choice.experts, choice.gates * factor, choice.probabilities), state

    body, moe, _ = model_with({"top_k": 0}, tau=1.0)  # its energies have not moved
    with torch.no_grad():
        base = loss_of(body, tokens)
        handle = moe.parts[0].router.register_forward_hook(lower)
        rises = []
        for lowered in range(4):  # noqa: B007 (the hook reads it)
            rises.append((loss_of(body, tokens) - base) / 1e-4)
        handle.remove()
    torch.testing.assert_close(seen, torch.stack(rises), rtol=1e-3, atol=1e-7)
    assert seen.abs().min() > 1e-6


def test_measures_by_hand() -> None:
    _, moe, scores = model_with()
    with torch.no_grad():
        scores.contribution[0, :4] = torch.tensor([0.1, 0.2, 0.3, 0.2])
        scores.variance[0, :4] = torch.tensor([0.0, 0.04, 0.12, 0.0])
        moe.expert_energy[0, :4] = torch.tensor([1.0, 0.5, 1.0, 2.0])
        scores.inputs[0, :4, :2] = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [2.0, 2.0]])
    efficiency, specialisation, resilience = scores.measures(0, torch.arange(4))
    assert efficiency.tolist() == pytest.approx([0.1, 0.4, 0.3, 0.1], rel=3e-3)
    assert specialisation.tolist() == pytest.approx([1 - 0.5**0.5, 1 - 0.5**0.5, 0, 0], abs=1e-6)
    assert resilience.tolist() == pytest.approx([1.0, 1 / 2, 1 / 4, 1.0])
    scores.update_organism({})
    assert scores.merit[0, 4:].tolist() == [1.0] * 4
    # Ranks: efficiency 0 (by a hair), 1, 2/3, 1/3; specialisation 5/6, 5/6, 1/6, 1/6; resilience 5/6, 1/3, 0, 5/6.
    score = torch.tensor([0 + 5 / 6 + 5 / 6, 1 + 5 / 6 + 1 / 3, 2 / 3 + 1 / 6 + 0, 1 / 3 + 1 / 6 + 5 / 6]) / 3
    torch.testing.assert_close(scores.merit[0, :4].float(), 1 + 0.5 * (2 * score - 1))


def test_merit_decides_who_splits_and_who_is_merged() -> None:
    _, moe, scores = model_with({"patience": 1, "experts": 4}, strength=0.5)
    with torch.no_grad():
        moe.expert_energy[0, :4] = torch.tensor([1.8, 1.8, 1.0, 0.3])
        scores.merit[0, :4] = torch.tensor([0.7, 1.3, 1.0, 0.6])
        assert moe.worth(0)[:4].tolist() == pytest.approx([1.26, 2.34, 1.0, 0.18])
        moe.wealth[0, :2] = 1.0
        moe.want[0, 2:4] = 1.0
        step(moe, 0, None)
    assert moe.individuals[0, 3].tolist() == [4, 1, 0]  # the clone of 1 in the slot of 3, which was merged
    assert moe.merges[0] == 1 and moe.splits[0] == 1
    assert not moe.wealth[0, 1] and moe.wealth[0, 0] == 1


def test_scores_follow_the_experts_and_differ_after_training() -> None:
    body, moe, scores = model_with({"top_k": 1})
    for seed in range(4):
        observe(body, seed)
    assert scores.contribution[:, :4].abs().min() > 0 and not scores.contribution[:, 4:].any()
    assert scores.merit[:, :4].std() > 0.05 and (scores.variance[:, :4] > 0).any()
    whole = scores.contribution[0, 1].clone(), scores.inputs[0, 1].clone()
    with torch.no_grad():
        split(moe, 0, 1, None)
    assert torch.equal(scores.contribution[0, [1, 4]].sum(), whole[0])
    assert torch.equal(scores.inputs[0, 1] + scores.inputs[0, 4], whole[1])


def test_something_must_be_scored() -> None:
    with pytest.raises(ConfigError, match="leave nothing to score"):
        NeuroscoreParams(efficiency=0, specialisation=0, resilience=0)
