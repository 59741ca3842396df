"""Expert health of uses that are known, and of a body that keeps them as organism state."""

import math

import numpy as np
import pytest
import torch

from bouton.errors import EvaluationError
from bouton.evaluation import evaluate
from bouton.evaluation.tasks.experts import health
from bouton.runs import Run


def test_known_distributions() -> None:
    even = health(np.full(8, 3.0))
    assert even["gini"] == pytest.approx(0) and even["entropy"] == pytest.approx(1) and even["dead_fraction"] == 0
    one = health(np.array([0.0, 0, 0, 5]))
    assert one["gini"] == pytest.approx(3 / 4) and one["entropy"] == 0 and one["dead_fraction"] == 3 / 4
    x = np.array([1.0, 2, 3, 10])
    pairs = np.abs(x[:, None] - x[None, :]).sum() / (2 * len(x) * x.sum())
    assert health(x)["gini"] == pytest.approx(pairs)
    assert math.isnan(health(np.zeros(4))["gini"])


def test_a_body_with_experts(stories: Run) -> None:
    layers = stories.model.layers
    for index, layer in enumerate(layers):  # type: ignore[arg-type]
        layer.register_buffer("expert_use", torch.tensor([1.0, 1.0, 2.0 * index, 9.0]))
        layer.register_buffer("expert_alive", torch.tensor([1.0, 1.0, 1.0, 0.0]))
        layer.register_buffer("expert_energy", torch.tensor([0.5, 1.0, 1.5, 7.0]))
    found = evaluate(stories, ["experts"])["experts"]
    first, second = found["tables"]["groups"]
    assert first["experts"] == 3 and first["dead_fraction"] == pytest.approx(1 / 3)
    assert second["dead_fraction"] == 0
    assert first["expert_energy_max"] == 1.5
    assert found["numbers"]["dead_fraction"] == pytest.approx(1 / 6)


def test_a_body_without_experts_is_refused(stories: Run) -> None:
    with pytest.raises(EvaluationError, match=r"^task experts: this run has no experts$"):
        evaluate(stories, ["experts"])
