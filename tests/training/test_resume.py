"""A run that was killed and resumed is, bit for bit, the run that was not."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import standins
import torch

from bouton.errors import CheckpointError, ConfigError, TrainingError
from bouton.training.callbacks.stop import StopControl
from bouton.training.schedules import build_schedule

TABLES = ("metrics.csv", "vitals.csv")


def run_killed(settings: dict[str, Any], **environment: str) -> None:
    result = subprocess.run(
        [sys.executable, standins.__file__, json.dumps(settings)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )
    assert result.returncode == -signal.SIGKILL, result.stderr


def weights(folder: Path, name: str = "last") -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)


def assert_same(a: Any, b: Any, path: str = "") -> None:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_same(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{path}[{i}]")
    else:
        assert a == b, path


def assert_same_run(whole: Path, resumed: Path) -> None:
    for table in TABLES:
        assert (whole / table).read_text() == (resumed / table).read_text()
    for name in ("last", "best"):
        a, b = weights(whole, name), weights(resumed, name)
        for key in ("state_dict", "optimizer_states", "lr_schedulers"):
            assert_same(a[key], b[key], f"{name}.{key}")
        for key in ("step", "random_states", "progress"):
            assert_same(a["bouton"][key], b["bouton"][key], f"{name}.{key}")
        for key in ("EarlyStop", "Checkpointing"):
            assert a["callbacks"].get(key) == b["callbacks"].get(key)


@pytest.mark.parametrize(
    ("optimizer", "environment"),
    [
        # 2 micro-batches per step: the 16th call is inside step 8, after the validation of 4 and the checkpoint of 6
        ("muon", {"KILL_AT_CALL": "16"}),
        # saves: best at 4 (validation), last at 3 and 6, best at 8, then last at 9: dies while writing the fourth
        ("adamw", {"KILL_IN_SAVE": "4"}),
    ],
)
def test_a_killed_run_resumes_bit_for_bit(tmp_path: Path, optimizer: str, environment: dict[str, str]) -> None:
    options: dict[str, Any] = {
        "optimizer": optimizer,
        "trainer__accumulate_grad_batches": 2,
        "callbacks__early_stop": {"patience": 50, "min_delta": 0.001},
        "data__ignore": True,
    }
    standins.train(standins.config(tmp_path / "whole", **options))
    settings = standins.config(tmp_path / "killed", **options)
    run_killed(settings, **environment)
    before = weights(tmp_path / "killed")["bouton"]["step"]
    assert 0 < before < 12
    standins.train({**settings, "ckpt_path": "last"})
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    assert not list((tmp_path / "killed").rglob(".*.partial"))


def test_a_prolonged_run_takes_the_rates_of_its_new_length_and_validates_on_time(tmp_path: Path) -> None:
    options: dict[str, Any] = {"schedule": "cosine", "schedule__warmup_steps": 0, "trainer__log_every": 1}
    halves = {"data__batch_size": 1, "trainer__accumulate_grad_batches": 2}
    first = standins.config(tmp_path / "run", trainer__max_steps=3, trainer__val_every=4, **halves, **options)
    standins.train(first)
    longer = standins.config(tmp_path / "run", trainer__max_steps=8, trainer__val_every=4, ckpt_path="last", **options)
    standins.train(longer)
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = {int(row["step"]): row for row in csv.DictReader(file)}
    assert [step for step, row in rows.items() if row["val/loss"]] == [3, 4, 8]
    schedule = build_schedule(longer["schedule"], 8)
    assert [float(rows[s]["train/lr"]) for s in (4, 5)] == [longer["optimizer"]["lr"] * schedule(s - 1) for s in (4, 5)]


def test_a_checkpoint_of_another_run_does_not_overwrite_one(tmp_path: Path) -> None:
    for name in ("a", "b"):
        standins.train(standins.config(tmp_path / name, trainer__max_steps=2))
    other = str(tmp_path / "a" / "checkpoints" / "last.ckpt")
    with pytest.raises(ConfigError, match="already holds another run"):
        standins.train(standins.config(tmp_path / "b", ckpt_path=other))


def test_last_in_a_fresh_folder_continues_the_newest_equal_run(tmp_path: Path, capsys: Any) -> None:
    whole, first, other = tmp_path / "w" / "whole", tmp_path / "runs" / "first", tmp_path / "runs" / "other"
    standins.train(standins.config(whole))
    settings = standins.config(first)
    settings["trainer"]["max_time"] = 1e-6  # over after the first step
    standins.train(settings)
    standins.train(standins.config(other, seed=1))
    fresh = standins.config(tmp_path / "runs" / "fresh", ckpt_path="last")
    standins.train(fresh)
    assert str(first) in capsys.readouterr().out
    assert not (tmp_path / "runs" / "fresh").exists()
    assert weights(first)["bouton"]["step"] == 12
    assert_same(weights(whole)["state_dict"], weights(first)["state_dict"])
    with pytest.raises(CheckpointError, match="no unfinished run with this configuration"):
        standins.train(fresh)  # all of them are finished now, and stay as they are
    (first / "checkpoints" / "last.ckpt").unlink()
    with pytest.raises(CheckpointError, match=r"first has no checkpoints/last\.ckpt"):
        standins.train(standins.config(first, ckpt_path="last"))
    with pytest.raises(CheckpointError, match="no unfinished run with this configuration"):
        standins.train(standins.config(tmp_path / "runs" / "none", ckpt_path="last", seed=7))


def test_an_interrupt_saves_at_the_next_step_boundary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    standins.train(standins.config(whole))
    original = StopControl.on_train_batch_end

    def interrupt(self: StopControl, trainer: Any, *args: Any) -> None:
        if trainer.global_step == 5:
            os.kill(os.getpid(), signal.SIGINT)
        original(self, trainer, *args)

    with monkeypatch.context() as patch:
        patch.setattr(StopControl, "on_train_batch_end", interrupt)
        with pytest.raises(TrainingError, match=r"interrupted at step 5: continue with ckpt_path="):
            standins.train(standins.config(cut))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    standins.train(standins.config(cut, ckpt_path="last"))
    assert_same_run(whole, cut)


def test_what_cannot_be_continued_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    standins.train(standins.config(folder))
    kept = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    refused: list[tuple[dict[str, Any], str]] = [
        ({"model__width": 16}, r"model\.width: the checkpoint has 8, this run has 16"),
        ({"mechanism": {"presyn": {"tau_c": 6.0}}}, r"mechanism: the checkpoint has 'none', this run has 'presyn'"),
        ({"optimizer": "muon"}, r"optimizer\.adamw\.betas: the checkpoint has None"),
        ({"data__batch_size": 4}, r"sequences per optimizer step: the checkpoint has 2, this run has 4"),
        ({"seed": 3}, r"seed: the checkpoint has 0, this run has 3"),
        ({"model__vocab_size": 20}, r"model\.vocab_size: the checkpoint has 11, this run has 20"),
    ]
    for options, message in refused:
        with pytest.raises(CheckpointError, match=message) as caught:
            standins.train(standins.config(folder, ckpt_path="last", **options))
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="already holds a run"):
        standins.train(standins.config(folder))
    assert kept == {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("damage", ["truncated", "flipped", "text"])
def test_a_corrupt_checkpoint_is_one_line_and_stays_as_it_is(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "run"
    standins.train(standins.config(folder, trainer__max_steps=2))
    path = folder / "checkpoints" / "last.ckpt"
    data = path.read_bytes()
    offset = data.index(weights(folder)["state_dict"]["body.hidden.weight"].numpy().tobytes())
    broken = {
        "truncated": data[: len(data) * 2 // 3],
        "flipped": data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :],
        "text": b"not a checkpoint",
    }[damage]
    path.write_bytes(broken)
    kept = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    with pytest.raises(CheckpointError, match=r"last\.ckpt is corrupt or truncated") as caught:
        standins.train(standins.config(folder, ckpt_path="last"))
    assert "\n" not in str(caught.value)
    assert kept == {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_an_early_stopped_run_stays_stopped_and_a_finished_one_can_be_prolonged(tmp_path: Path) -> None:
    options = {"callbacks__early_stop": {"patience": 1, "min_delta": 100.0}, "schedule": "constant"}
    stopped = standins.config(tmp_path / "stopped", **options)
    loss = standins.train(stopped)
    # the first validation is a gain over infinity, the second is not one of 100 nats
    assert weights(tmp_path / "stopped")["bouton"]["step"] == 8
    assert json.loads((tmp_path / "stopped" / "summary.json").read_text())["status"] == "stopped early"
    assert standins.train({**stopped, "ckpt_path": "last"}) == loss
    assert weights(tmp_path / "stopped")["bouton"]["step"] == 8

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    standins.train(standins.config(whole, schedule="constant", schedule__warmup_steps=2))
    prolonged: dict[str, Any] = {"schedule": "constant", "schedule__warmup_steps": 2}
    for steps, ckpt in ((8, None), (12, "last"), (12, "last")):
        standins.train(standins.config(parts, trainer__max_steps=steps, ckpt_path=ckpt, **prolonged))
    assert_same_run(whole, parts)
