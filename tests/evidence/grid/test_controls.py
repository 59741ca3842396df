"""Controls: as much compute as the dearest arm, and a plan that stays."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from synthetic import STEPS, make_run, make_study

import bouton
from bouton.errors import ConfigError
from bouton.evidence.frame import load
from bouton.evidence.grid.controls import check_kinds, plan, wider

COSTS = {"presyn": {"flops": 1.02, "slower": 1.25}, "hebb": {"flops": 1.1, "slower": 1.6}}


def test_the_dearest_arm_sets_the_budget(tmp_path: Path) -> None:
    make_study(tmp_path, {"none": 0.0, "presyn": 0.0, "hebb": 0.0}, range(2), costs=COSTS)
    flops, time = plan(tmp_path, load(tmp_path), ["flops", "time"])
    assert (flops.label, flops.words) == ("none@flops", (f"trainer.max_steps={math.ceil(STEPS * 1.1)}",))
    assert (time.label, time.words) == ("none@time", (f"trainer.max_steps={math.ceil(STEPS * 1.6)}",))
    assert (time.arm().mechanism, time.arm().of, time.arm().control) == ("none", "none", "time")


def test_a_plan_stays_although_speeds_vary(tmp_path: Path) -> None:
    make_study(tmp_path, {"none": 0.0, "hebb": 0.0}, range(2), costs=COSTS)
    before = plan(tmp_path, load(tmp_path), ["time"])
    make_run(tmp_path / "hebb_seed2", "hebb", 2, 2.0, slower=1.55)
    make_run(tmp_path / "none_seed2", "none", 2, 2.0)
    assert plan(tmp_path, load(tmp_path), ["time"]) == before
    # A dearer arm gets a longer run beside the first.
    make_study(tmp_path, {"sparse": 0.0}, range(2), costs={"sparse": {"slower": 2.5}})
    assert [c.label for c in plan(tmp_path, load(tmp_path), ["time"])] == ["none@time", "none@time2"]


def test_nothing_to_pay_nothing_to_run(tmp_path: Path) -> None:
    make_study(tmp_path, {"none": 0.0, "presyn": 0.0}, range(2), costs={"presyn": {"flops": 1.005, "slower": 0.8}})
    assert plan(tmp_path, load(tmp_path), ["flops", "time", "params"]) == []
    assert not (tmp_path / "controls.json").exists()


@pytest.mark.parametrize("activation", ["relu2", "swiglu"])
def test_a_wider_body_has_the_parameters(activation: str) -> None:
    overrides = ("model=tiny", f"model.activation={activation}", "model.vocab_size=300")
    config = {"model": dict(bouton.compose(*overrides).model)}
    own = sum(p.numel() for p in bouton.build(bouton.compose(*overrides)).parameters())
    ratio, mixer_ratio = wider(config, 1.05)
    body = bouton.build(bouton.compose(*overrides, f"model.mixer_ratio={mixer_ratio!r}"))
    assert sum(p.numel() for p in body.parameters()) / own == pytest.approx(ratio)
    assert 1.05 <= ratio < 1.08


def test_unknown_kind() -> None:
    with pytest.raises(ConfigError, match="'flop' is unknown: did you mean 'flops'"):
        check_kinds(["flop"])
