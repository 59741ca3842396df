"""Calibration errors against torchmetrics, on the predictions of a trained run and on made-up ones."""

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import binary_calibration_error

from bouton.evaluation import evaluate
from bouton.evaluation.subject import Subject
from bouton.evaluation.tasks.calibration import _ece, _predictions, bin_sums
from bouton.runs import Run


def test_the_error_is_that_of_torchmetrics(stories: Run) -> None:
    row, confidence, correct, brier = _predictions(Subject(stories))
    numbers = evaluate(stories, "calibration", {"calibration": {"resamples": 200}})["calibration"]["numbers"]
    expected = binary_calibration_error(torch.tensor(confidence), torch.tensor(correct).long(), n_bins=15, norm="l1")
    assert numbers["ece"] == pytest.approx(float(expected), abs=1e-6)
    assert numbers["accuracy"] == pytest.approx(stories.summary["best"]["val_accuracy"])
    assert numbers["overconfidence"] == pytest.approx(confidence.mean() - correct.mean())
    assert brier.min() >= 0 and brier.max() <= 2 and len(np.unique(row)) == numbers["tokens"] / 32
    assert numbers["adaptive_ece_low"] < numbers["adaptive_ece_high"]


def test_adaptive_bins_are_equally_full(stories: Run) -> None:
    bins = evaluate(stories, "calibration", {"calibration": {"bins": 8, "resamples": 100}})["calibration"]["tables"]
    tokens = [row["tokens"] for row in bins["adaptive_bins"]]
    assert len(tokens) == 8 and max(tokens) - min(tokens) <= 2
    assert sum(row["tokens"] for row in bins["bins"]) == sum(tokens)


@pytest.mark.parametrize(("shift", "expected"), [(0.0, 0.0), (0.2, 0.2)])
def test_a_known_miscalibration_is_found(shift: float, expected: float) -> None:
    draw = np.random.default_rng(0)
    confidence = draw.uniform(0.3, 0.9, 40000)
    correct = (draw.random(40000) < confidence - shift).astype(float)
    sums = bin_sums(np.arange(40000) % 100, confidence, correct, np.linspace(0, 1, 16))
    assert _ece(sums.sum(0).reshape(1, -1))[0] == pytest.approx(expected, abs=0.02)
