"""Tables of runs: arms are told apart, every state of a run has its row, curves come with tokens."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from synthetic import make_run, make_study

import bouton
from bouton.errors import DataError
from bouton.evidence.arms import Arm, name_arms
from bouton.evidence.frame import curves, load


def test_one_row_per_run_with_metrics_and_costs(tmp_path: Path) -> None:
    make_study(tmp_path / "s", {"none": 0.0, "presyn": -0.1}, range(2), noise=0.0)
    frame = bouton.evidence.load(tmp_path / "s")
    assert list(frame["arm"]) == ["none", "none", "presyn", "presyn"]
    assert list(frame["seed"]) == [0, 1, 0, 1]
    run = json.loads((tmp_path / "s" / "presyn_seed1" / "summary.json").read_text())
    row = frame.iloc[3]
    assert (row.status, row.run, row.step) == ("finished", "presyn_seed1", 400)
    assert (row.final_val_loss, row.best_val_loss) == (run["final"]["val_loss"], run["best"]["val_loss"])
    for name in ("parameters", "training_flops", "tokens", "tokens_per_second", "wall_seconds", "peak_memory_bytes"):
        assert row[name] == run["costs"][name]


def test_a_single_run_is_a_table_of_one_row(tmp_path: Path) -> None:
    assert len(load(make_run(tmp_path / "one", "hebb", 3, 2.0))) == 1


def test_crashed_and_unfinished_runs_have_rows(tmp_path: Path) -> None:
    make_run(tmp_path / "s" / "a", "none", 0, 2.0)
    for name, seed in (("b", 1), ("c", 2), ("d", 3)):
        folder = make_run(tmp_path / "s" / name, "hebb", seed, 2.0)
        (folder / "summary.json").unlink()
    (tmp_path / "s" / "b" / "status.json").write_text('{"status": "crashed", "error": "no memory"}')
    (tmp_path / "s" / "c" / ".hydra").mkdir()  # killed before the run wrote its own configuration
    (tmp_path / "s" / "c" / "config.yaml").rename(tmp_path / "s" / "c" / ".hydra" / "config.yaml")
    frame = load(tmp_path / "s").set_index("run")
    assert list(frame["status"]) == ["finished", "crashed", "unfinished", "unfinished"]
    assert frame.loc["b", "error"] == "no memory"
    assert (frame.loc["c", "arm"], frame.loc["c", "seed"]) == ("hebb", 2)
    assert math.isnan(frame.loc["d", "final_val_loss"])


def test_arms_differ_by_what_differs() -> None:
    base = {"seed": 0, "mechanism": {}, "optimizer": {"name": "adamw", "lr": 0.002, "betas": [0.9, 0.95]}}
    muon = {**base, "optimizer": {"name": "muon", "lr": 0.02, "momentum": 0.9}}
    fast = {**base, "mechanism": {"presyn": {"tau_c": 3.0, "s": 3.0}, "hebb": {"rank": 4}}}
    slow = {**base, "seed": 1, "mechanism": {"hebb": {"rank": 4}, "presyn": {"tau_c": 6.0, "s": 3.0}}}
    assert [a.label for a in name_arms([base, fast, slow])] == [
        "none", "hebb+presyn presyn.tau_c=3", "hebb+presyn presyn.tau_c=6",
    ]  # fmt: skip
    # What goes with the name of an optimizer is told by the name.
    assert [a.label for a in name_arms([base, muon])] == ["none optimizer.name=adamw", "none optimizer.name=muon"]
    rate = {**base, "optimizer": {**base["optimizer"], "lr": 0.004}}
    assert [a.label for a in name_arms([base, rate])] == ["none optimizer.lr=0.002", "none optimizer.lr=0.004"]


def test_seed_paths_and_loggers_do_not_make_an_arm() -> None:
    a = {"seed": 0, "run_dir": "a", "ckpt_path": None, "logger": {}, "model": {"vocab_size": None}}
    b = {"seed": 1, "run_dir": "b", "ckpt_path": "last", "logger": {"wandb": {}}, "model": {"vocab_size": 300}}
    assert [arm.label for arm in name_arms([a, b])] == ["none", "none"]


def test_controls_say_themselves_what_they_are(tmp_path: Path) -> None:
    make_study(tmp_path / "s", {"none": 0.0, "hebb": 0.0}, [0], controls=True)
    frame = load(tmp_path / "s")
    assert list(frame["arm"]) == ["none", "hebb", "none@params", "none@time"]
    assert list(frame["control"].dropna()) == ["params", "time"]
    assert Arm("hebb", "hebb.rule=oja").label == "hebb hebb.rule=oja"


def test_curves_count_tokens(tmp_path: Path) -> None:
    make_study(tmp_path / "s", {"none": 0.0}, range(2))
    lines = curves(load(tmp_path / "s"))
    assert list(lines["step"][:3]) == [1, 50, 100]
    assert list(lines["tokens"][:2]) == [2048, 50 * 2048]
    assert set(lines["seed"]) == {0, 1}


def test_wrong_folders_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such folder"):
        load(tmp_path / "no")
    make_study(tmp_path / "sweep", {"none": 0.0}, [0])
    with pytest.raises(DataError, match=r"holds no run; sweeps in it: sweep$"):
        load(tmp_path)
