"""Pairs: the joint effect minus the sum of the single ones, seed by seed."""

from __future__ import annotations

from pathlib import Path

import pytest
from synthetic import make_run, make_study

from bouton.evidence.frame import load
from bouton.evidence.metrics import metric
from bouton.evidence.statistics import baselines
from bouton.evidence.synergy import synergies


def found(folder: Path):
    frame = load(folder)
    return synergies(frame, metric("final_val_loss", frame.columns), baselines(frame))


def test_more_than_the_sum(tmp_path: Path) -> None:
    effects = {"none": 0.0, "hebb": -0.02, "presyn": -0.03, "hebb+presyn": -0.09}
    (one,) = found(make_study(tmp_path / "s", effects, range(4), noise=0.001))
    assert (one.first, one.second, one.arm) == ("hebb", "presyn", "hebb+presyn")
    assert one.comparison.difference == pytest.approx(-0.04, abs=0.005)
    assert one.comparison.verdict == "helps"


def test_effects_that_add_up_have_no_synergy(tmp_path: Path) -> None:
    effects = {"none": 0.0, "hebb": -0.02, "presyn": 0.05, "hebb+presyn": 0.03}
    (one,) = found(make_study(tmp_path / "s", effects, range(6), noise=0.001))
    assert one.comparison.verdict == "no detectable difference"


def test_a_pair_without_its_parts_is_left_out(tmp_path: Path) -> None:
    assert found(make_study(tmp_path / "s", {"none": 0.0, "hebb": 0.0, "hebb+presyn": 0.0}, range(2))) == []


def test_a_seed_without_all_four_runs_is_named(tmp_path: Path) -> None:
    root = make_study(tmp_path / "s", {"none": 0.0, "hebb": 0.0, "presyn": 0.0, "hebb+presyn": 0.0}, range(2))
    make_run(root / "extra", "hebb+presyn", 5, 2.0)
    (one,) = found(root)
    assert one.comparison.unpaired == ("seed 5: not all four runs of the pair finished",)
