"""Paired statistics against hand calculations, known effects, and the rate of false positives."""

from __future__ import annotations

import csv
import gc
import math
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pandas as pd
import pytest
from scipy import integrate
from synthetic import make_study

from bouton.errors import ConfigError
from bouton.evidence import load
from bouton.evidence.metrics import metric
from bouton.evidence.statistics import (
    FEW,
    HELPS,
    HURTS,
    SAME,
    Comparison,
    baselines,
    compare,
    judge,
    pair,
    seeds_for,
    summarize,
)

LOSS = metric("final_val_loss", ["final_val_loss", "final_val_accuracy"])


def table(values: dict[str, dict[int, float]], column: str = "final_val_loss") -> pd.DataFrame:
    rows = [
        {"arm": arm, "mechanism": arm, "overrides": "", "control": None, "seed": seed, "status": "finished", column: x}
        for arm, runs in values.items()
        for seed, x in runs.items()
    ]
    return pd.DataFrame(rows)


def by_arm(found: list[Comparison]) -> dict[str, Comparison]:
    return {one.arm: one for one in found}


def last_loss(folder: Path) -> float:
    with (folder / "metrics.csv").open() as file:
        return float(list(csv.DictReader(file))[-1]["val/loss"])


def t_tail(t: float, df: int) -> float:
    """P(T > t), from the density."""
    scale = math.gamma((df + 1) / 2) / (math.sqrt(df * math.pi) * math.gamma(df / 2))
    return float(integrate.quad(lambda x: scale * (1 + x * x / df) ** (-(df + 1) / 2), t, math.inf)[0])


def test_verdicts_agree_with_a_hand_calculation_from_the_csv_files(tmp_path: Path) -> None:
    effects = {"none": 0.0, "presyn": -0.06, "hebb": 0.04, "hebb+presyn": 0.002}
    make_study(tmp_path / "study", effects, range(5), noise=0.01, rng=np.random.default_rng(3))
    found = by_arm(compare(load(tmp_path / "study")))
    by_hand, raw = {}, {}
    for arm in found:
        d = [
            last_loss(tmp_path / f"study/{arm}_seed{s}") - last_loss(tmp_path / f"study/none_seed{s}") for s in range(5)
        ]
        error = stdev(d) / math.sqrt(5)
        by_hand[arm] = (mean(d), stdev(d), mean(d) - 2.7764451 * error, mean(d) + 2.7764451 * error)  # t(0.975, 4)
        raw[arm] = 2 * t_tail(abs(mean(d) / error), 4)
    holm, largest = {}, 0.0
    for rank, arm in enumerate(sorted(raw, key=lambda arm: raw[arm])):
        largest = max(largest, min(1.0, (3 - rank) * raw[arm]))
        holm[arm] = largest
    for arm, one in found.items():
        assert (one.difference, one.sd, one.low, one.high) == pytest.approx(by_hand[arm], rel=1e-6)
        assert (one.p, one.p_holm) == pytest.approx((raw[arm], holm[arm]), rel=1e-6)
        assert one.d_z == pytest.approx(by_hand[arm][0] / by_hand[arm][1])
        significant = holm[arm] < 0.05
        assert (one.verdict in (HELPS, HURTS)) == significant
    assert (found["presyn"].verdict, found["hebb"].verdict) == (HELPS, HURTS)
    assert found["hebb+presyn"].verdict in (SAME, FEW)


@pytest.fixture
def quick_gc():
    """statsmodels collects garbage in every correction, which costs more than everything else here."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def test_false_positives_over_a_thousand_null_grids(quick_gc: None) -> None:
    rng = np.random.default_rng(20)
    seeds, grids = 5, 1000
    single = family = 0
    for _ in range(grids):
        shared = rng.normal(2.0, 0.05, seeds)
        arms = {name: dict(enumerate(shared + rng.normal(0, 0.01, seeds))) for name in ("none", "a", "b", "c")}
        alone = judge([pair("a", arms["a"], "none", arms["none"])], LOSS)
        together = judge([pair(name, arms[name], "none", arms["none"]) for name in "abc"], LOSS)
        single += alone[0].verdict in (HELPS, HURTS)
        family += any(one.verdict in (HELPS, HURTS) for one in together)
    assert 0.035 <= single / grids <= 0.065
    assert family / grids <= 0.065  # Holm: at most 5 % of grids with any false claim; less as arms share a baseline


def test_equivalence_is_not_claimed_of_a_difference_that_matters(quick_gc: None) -> None:
    rng = np.random.default_rng(21)
    claimed = 0
    for _ in range(400):
        base = rng.normal(2.0, 0.05, 8)
        arm = base + LOSS.interest + rng.normal(0, 0.004, 8)
        one = judge([pair("a", dict(enumerate(arm)), "none", dict(enumerate(base)))], LOSS, alpha=0.05)[0]
        claimed += one.p_equivalence < 0.05
    assert claimed / 400 <= 0.08  # at the bound itself the error is 5 %


def test_no_detectable_difference_needs_a_narrow_interval() -> None:
    tight = {seed: 2.0 + 0.001 * (-1) ** seed for seed in range(6)}
    wide = {seed: 2.0 + 0.05 * (-1) ** seed for seed in range(6)}
    base = dict.fromkeys(range(6), 2.0)
    same, few = judge([pair("tight", tight, "none", base), pair("wide", wide, "none", base)], LOSS)
    assert (same.verdict, few.verdict) == (SAME, FEW)
    assert same.seeds_needed is None
    assert few.seeds_for_interest is not None and few.seeds_for_interest > 100
    assert few.seeds_needed is None  # the observed effect is zero


def test_direction_follows_the_metric() -> None:
    values = {"none": {s: 0.5 + s / 100 for s in range(4)}, "a": {s: 0.6 + s / 100 + s * 1e-4 for s in range(4)}}
    assert compare(table(values))[0].verdict == HURTS
    assert compare(table(values, "final_val_accuracy"), "val_accuracy")[0].verdict == HELPS


def test_seeds_of_one_side_are_left_out_and_named() -> None:
    frame = table({"none": {0: 2.0, 1: 2.1, 2: 2.2}, "a": {1: 2.0, 2: 2.11, 3: 1.0, 4: 1.5}})
    frame.loc[(frame["arm"] == "a") & (frame["seed"] == 4), "status"] = "crashed"
    (one,) = compare(frame)
    assert one.seeds == (1, 2)
    assert one.unpaired == ("seed 4: a crashed", "seed 3: no value of none", "seed 0: no value of a")
    assert one.difference == pytest.approx((-0.1 - 0.09) / 2)


def test_one_seed_gives_no_test() -> None:
    (one,) = compare(table({"none": {0: 2.0}, "a": {0: 1.0}}))
    assert one.verdict == FEW and math.isnan(one.p) and one.difference == -1.0


def test_wilcoxon_from_six_seeds_on() -> None:
    d = {seed: -0.1 - seed / 100 for seed in range(6)}
    base = dict.fromkeys(range(6), 0.0)
    assert pair("a", d, "none", base).p_wilcoxon == pytest.approx(2 / 2**6)
    del d[5]
    assert pair("a", d, "none", base).p_wilcoxon is None


def test_differences_that_vary_in_the_last_bit_are_equal() -> None:
    plain, other = {0: 0.3, 1: 0.4}, {0: 0.2, 1: 0.3}
    assert plain[0] - other[0] != plain[1] - other[1]
    (one,) = judge([pair("a", other, "none", plain)], LOSS)
    assert (one.sd, one.p, one.verdict) == (0.0, 0.0, HELPS)
    nearly = pair("a", {0: 0.2, 1: 0.3 + 1e-9}, "none", plain)  # took hours
    assert nearly.p < 1e-6 and math.isnan(nearly.d_z_low)


def test_equal_runs_are_equal() -> None:
    runs = dict.fromkeys(range(3), 2.0)
    (one,) = judge([pair("a", runs, "none", runs)], LOSS)
    assert (one.p, one.verdict) == (1.0, SAME)


def test_interval_of_the_effect_size_covers_it() -> None:
    rng = np.random.default_rng(5)
    inside = 0
    for _ in range(400):
        one = pair("a", dict(enumerate(rng.normal(0.8, 1.0, 8))), "none", dict.fromkeys(range(8), 0.0))
        inside += one.d_z_low <= 0.8 <= one.d_z_high
    assert 0.92 <= inside / 400 <= 0.98


def test_seeds_needed_give_the_power() -> None:
    assert seeds_for(0.5, 0.05) == 34  # Cohen 1988, table 2.4 for paired samples
    assert seeds_for(1e-3, 0.05) is None
    rng = np.random.default_rng(6)
    n = seeds_for(1.2, 0.05)
    assert n is not None
    draws = rng.normal(1.2, 1.0, (4000, n))
    t = draws.mean(1) / draws.std(1, ddof=1) * math.sqrt(n)
    critical = {7: 2.4469, 8: 2.3646, 9: 2.3060}[n]
    assert 0.79 <= (t > critical).mean() <= 0.92


def test_summary() -> None:
    found = summarize([1.0, 2.0, 3.0])
    assert (found.n, found.mean, found.sd) == (3, 2.0, 1.0)
    assert found.high - 2.0 == pytest.approx(4.302653 / math.sqrt(3))
    assert math.isnan(summarize([1.0]).sd)


def test_each_arm_is_compared_with_the_plain_body_of_its_settings() -> None:
    rows = [("none", "lr=1"), ("none", "lr=2"), ("hebb", "hebb.rule=oja lr=2"), ("hebb", "lr=1")]
    frame = pd.DataFrame(
        [{"arm": f"{m} {o}", "mechanism": m, "overrides": o, "control": None, "seed": 0} for m, o in rows]
    )
    assert baselines(frame) == {"hebb hebb.rule=oja lr=2": "none lr=2", "hebb lr=1": "none lr=1"}
    assert set(baselines(frame, "hebb lr=1").values()) == {"hebb lr=1"}
    with pytest.raises(ConfigError, match=r"baseline = hebb lr=3 is unknown: did you mean 'hebb lr="):
        baselines(frame, "hebb lr=3")
    with pytest.raises(ConfigError, match="no arm without mechanisms"):
        baselines(frame[2:])


def test_unknown_metric_is_one_line() -> None:
    with pytest.raises(ConfigError, match="metric = val_los is unknown: did you mean 'final_val_loss'"):
        compare(table({"none": {0: 1.0}}), "val_los")
