"""Comparisons at equal cost: the baseline's figure is that of a run with the same budget."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from synthetic import FLOPS, STEPS, make_run, make_study

from bouton.evidence.frame import load
from bouton.evidence.metrics import metric
from bouton.evidence.prices import costs, prices


def study(folder: Path, **cost: float):
    make_study(folder, {"none": 0.0, "hebb": -0.05}, range(3), noise=0.0, costs={"hebb": cost}, controls=True)
    frame = load(folder)
    measure = metric("final_val_loss", frame.columns)
    return frame, prices(frame, measure, {"hebb": "none"})["hebb"]


def test_costs_are_relative_to_the_baseline(tmp_path: Path) -> None:
    frame, _ = study(tmp_path / "s", flops=1.2, slower=1.5, parameters=1.05)
    found = costs(frame, "hebb", "none")
    assert (found.flops, found.time, found.params, found.memory) == pytest.approx((1.2, 1.5, 1.05, 1.0))


def test_equal_time_is_a_run_of_that_length(tmp_path: Path) -> None:
    _, price = study(tmp_path / "s", slower=1.3)
    assert price["time"].source == "a longer run"
    assert price["time"].comparison.difference == pytest.approx(-0.05 + 0.03)
    assert price["tokens"].comparison.difference == pytest.approx(-0.05)
    assert price["flops"].source == "the baseline"


def test_between_two_budgets_the_loss_is_interpolated(tmp_path: Path) -> None:
    _, price = study(tmp_path / "s", flops=1.14, parameters=1.04)
    share = math.log(1.14) / math.log(1.3)
    assert price["flops"].source == "a longer run, interpolated"
    assert price["flops"].comparison.difference == pytest.approx(-0.05 + 0.03 * share)
    share = math.log(1.04) / math.log(1.1)
    assert price["params"].comparison.difference == pytest.approx(-0.05 + 0.01 * share)


def test_a_budget_beyond_the_longest_run_has_no_verdict(tmp_path: Path) -> None:
    _, price = study(tmp_path / "s", slower=2.0)
    assert price["time"].comparison is None
    assert price["time"].reason == "the baseline was run with 1.30 of its tokens at most, 2.00 are needed"


def test_a_cheaper_arm_meets_the_learning_curve(tmp_path: Path) -> None:
    _, price = study(tmp_path / "s", flops=0.5)
    at_half = 3.0 * ((STEPS / 2) ** -0.5 - STEPS**-0.5)  # the synthetic curve's value above its end
    assert price["flops"].source == "its learning curve"
    assert price["flops"].comparison.difference == pytest.approx(-0.05 - at_half)


def test_a_smaller_arm_meets_the_whole_baseline(tmp_path: Path) -> None:
    _, price = study(tmp_path / "s", parameters=0.8)
    assert price["params"].source == "the baseline, although it is larger"
    assert price["params"].comparison.difference == pytest.approx(-0.05)


def test_a_seed_without_a_longer_run_is_left_out_and_named(tmp_path: Path) -> None:
    make_study(tmp_path / "s", {"none": 0.0, "hebb": -0.05}, range(3), costs={"hebb": {"slower": 1.3}}, controls=True)
    make_run(tmp_path / "s" / "none_seed9", "none", 9, 2.0)
    make_run(tmp_path / "s" / "hebb_seed9", "hebb", 9, 2.0, slower=1.3)
    frame = load(tmp_path / "s")
    found = prices(frame, metric("final_val_loss", frame.columns), {"hebb": "none"})["hebb"]
    assert found["tokens"].comparison.n == 4
    assert found["time"].comparison.n == 3
    assert found["time"].comparison.unpaired == ("seed 9: no value of none",)


def test_unknown_costs_are_said(tmp_path: Path) -> None:
    frame, _ = study(tmp_path / "s")
    frame["training_flops_per_token"] = math.nan
    found = prices(frame, metric("final_val_loss", frame.columns), {"hebb": "none"})["hebb"]
    assert (found["flops"].comparison, found["flops"].reason) == (None, "its cost was not recorded")
    assert FLOPS > 0
