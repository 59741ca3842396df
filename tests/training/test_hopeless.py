"""Curves are extrapolated with an honest bound; only hopeless runs are stopped, and no finished one is touched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import standins

from bouton.errors import ConfigError
from bouton.training.extrapolation import extrapolate


@pytest.mark.parametrize(("floor", "size", "exponent"), [(2.0, 3.0, 0.5), (1.0, 5.0, 0.3), (3.0, 2.0, 1.0)])
def test_the_bound_is_below_the_truth_and_tightens(floor: float, size: float, exponent: float) -> None:
    steps = np.arange(10.0, 201.0, 10.0)
    truth = floor + size * 200.0**-exponent
    draw = np.random.default_rng(0)
    kept, gaps = 0, {4: [], 12: []}  # type: ignore[var-annotated]
    for _ in range(20):
        losses = (floor + size * steps**-exponent) * (1 + 0.003 * draw.standard_normal(len(steps)))
        for count, seen in gaps.items():
            found = extrapolate(steps[:count].tolist(), losses[:count].tolist(), 200, 0.95)
            assert found is not None and found.optimistic <= found.predicted
            kept += found.optimistic <= truth
            seen.append(abs(found.optimistic - truth))
    assert kept >= 36  # of 40
    assert np.median(gaps[12]) < np.median(gaps[4])


def test_a_flat_curve_promises_nothing_and_a_short_or_broken_one_is_left_alone() -> None:
    flat = extrapolate([1, 2, 3, 4, 5], [4.0, 4.0, 4.0, 4.0, 4.0], 10, 0.95)
    assert flat is not None and flat.optimistic > 3.5 and flat.predicted == pytest.approx(4.0, abs=0.01)
    assert extrapolate([1, 2, 3], [3.0, 2.0, 1.5], 10, 0.95) is None
    assert extrapolate([1, 2, 3, 4], [3.0, float("nan"), 1.5, 1.2], 10, 0.95) is None


def rule(threshold: float) -> dict[str, Any]:
    return {"callbacks__hopeless": {"threshold": threshold, "confidence": 0.9, "slack": 0.0}, "trainer__val_every": 1}


def summary(folder: Path) -> dict[str, Any]:
    content = json.loads((folder / "summary.json").read_text())
    assert isinstance(content, dict)
    return content


def test_a_hopeless_run_stops_with_its_prediction_and_a_hopeful_one_is_unchanged(tmp_path: Path) -> None:
    plain = standins.train(standins.config(tmp_path / "plain", trainer__val_every=1))
    hopeful = standins.train(standins.config(tmp_path / "hopeful", **rule(plain + 0.5)))
    assert hopeful == plain and summary(tmp_path / "hopeful")["status"] == "finished"
    standins.train(standins.config(tmp_path / "hopeless", **rule(0.01)))
    content = summary(tmp_path / "hopeless")
    assert content["status"] == "stopped as hopeless" and 4 <= content["step"] < 12
    prediction = content["prediction"]
    assert prediction["threshold"] == 0.01 < prediction["optimistic_loss"] <= prediction["predicted_loss"]


def test_the_last_step_is_never_hopeless(tmp_path: Path) -> None:
    settings = standins.config(tmp_path, **{**rule(0.01), "trainer__val_every": 4})  # three points at most
    standins.train(settings)
    assert summary(tmp_path)["status"] == "finished" and summary(tmp_path)["step"] == 12


def test_bad_values_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"callbacks\.hopeless\.slack is missing"):
        standins.train(standins.config(tmp_path, callbacks__hopeless={"threshold": 1.0, "confidence": 0.9}))
    with pytest.raises(ConfigError, match=r"callbacks\.hopeless\.threshold = 'low'"):
        bad = {"threshold": "low", "confidence": 0.9, "slack": 0.0}
        standins.train(standins.config(tmp_path, callbacks__hopeless=bad))
