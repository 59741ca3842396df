"""Real grids of tiny runs: what is made, kept, continued and recorded."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pandas as pd
import pytest

from bouton.cli.train import main
from bouton.errors import TrainingError
from bouton.evidence import load
from bouton.evidence.arms import Arm
from bouton.evidence.grid.job import RecordedJob, alone
from bouton.evidence.grid.sweep import Grid, Run

TINY = (
    "-m", "hydra/sweeper=grid", "model=tiny", "model.num_layers=1", "model.hidden_size=16", "data.seq_len=16",
    "data.batch_size=2", "data.max_bytes=100000", "data.val_tokens=256", "data.tokenizer.kind=bytes",
    "trainer.accelerator=cpu", "trainer.max_steps=6", "trainer.val_every=3", "callbacks.checkpoint.save_every=2",
    "kernels=torch",
)  # fmt: skip
METRICS = ["arm", "seed", "status", "step", "final_val_loss", "best_val_loss", "final_train_loss"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BOUTON_CACHE", str(tmp_path / "cache"))
    return tmp_path


def stamps(folder: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("*/summary.json")}


def test_the_same_command_makes_only_what_is_missing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*TINY, "mechanism=none,hebb", "seed=0"]
    assert main(words) == 0
    (folder,) = (place / "runs").iterdir()
    assert folder.name.startswith("grid_")
    before = stamps(folder)
    assert set(before) == {"none_seed0", "hebb_seed0"}
    assert main([*TINY, "mechanism=none,hebb,presyn+hebb", "seed=0"]) == 0  # more arms, the same study
    after = stamps(folder)
    assert set(after) - set(before) == {"hebb+presyn_seed0"}
    assert {name: after[name] for name in before} == before
    assert list((place / "runs").iterdir()) == [folder]
    frame = load(folder)
    assert list(frame["arm"]) == ["none", "hebb", "hebb+presyn"]
    assert len(set(frame["final_val_loss"])) == 3
    # Another setting is another study.
    assert main([*TINY, "mechanism=none", "seed=0", "optimizer.lr=0.01"]) == 0
    assert len(list((place / "runs").iterdir())) == 2


def test_a_run_killed_before_its_summary_has_the_same_table(place: Path) -> None:
    """Decoding a sample takes a while between the last checkpoint and the summary."""
    words = [*TINY, "mechanism=hebb", "seed=0", "run_dir=g", "trainer.log_every=4"]
    assert main(words) == 0
    before = load("g")
    Path("g/hebb_seed0/summary.json").unlink()
    assert main(words) == 0
    pd.testing.assert_frame_equal(load("g")[METRICS], before[METRICS])


def test_fixed_parameters_go_to_the_arms_that_have_them(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "mechanism=hebb", "mechanism.hebb.rank=2", "seed=0", "run_dir=g"]) == 0
    assert load("g")["arm"].tolist() == ["hebb"]
    assert "rank: 2" in Path("g/hebb_seed0/config.yaml").read_text()
    (place / "conf" / "experiment").mkdir(parents=True)
    text = "# @package _global_\nmechanism:\n  hebb:\n    rank: 2\n"
    (place / "conf" / "experiment" / "own.yaml").write_text(text)
    words = ["--config-dir", str(place / "conf"), *TINY, "experiment=own", "mechanism=none,hebb", "seed=0"]
    assert main(words) == 1
    assert "the experiment sets parameters of hebb, which puts them into arm 'none', too" in capsys.readouterr().err


def test_swept_settings_are_arms_with_safe_folders(place: Path) -> None:
    assert main([*TINY, "mechanism=none,hebb", "seed=0,1", "mechanism.hebb.rule=oja,delta", "run_dir=g"]) == 0
    frame = load("g")
    assert list(frame["arm"].unique()) == ["none", "hebb hebb.rule=delta", "hebb hebb.rule=oja"]
    assert len(frame) == 6
    assert all(
        name.replace("+", "").replace("-", "").replace("_", "").replace(".", "").isalnum() for name in frame["run"]
    )


def test_a_crash_is_recorded_and_the_others_go_on(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of three arms the middle one has a value that only the job itself can refuse."""
    words = [*TINY, "seed=0", "run_dir=g", "hydra.sweeper.arms=[none,'none trainer.log_every=0',hebb]"]
    assert main(words) == 1
    err = capsys.readouterr().err
    assert "error: 1 of 3 runs crashed" in err and "the same command runs them again" in err
    frame = load("g").set_index("arm")
    assert frame.loc["none trainer.log_every=0", "status"] == "crashed"
    assert "trainer.log_every = 0 is not valid" in frame.loc["none trainer.log_every=0", "error"]
    assert (frame["status"] == "finished").sum() == 2
    folder = Path(frame.loc["none trainer.log_every=0", "folder"])
    assert "Traceback" in (folder / "traceback.txt").read_text()
    before = stamps(Path("g"))
    assert main(words) == 1
    assert stamps(Path("g")) == before


def test_controls_are_made_after_the_arms(place: Path) -> None:
    words = [*TINY, "mechanism=none,hebb", "seed=0,1", "run_dir=g", "hydra.sweeper.controls=[flops,params]"]
    assert main(words) == 0
    frame = load("g")
    assert list(frame["arm"].unique()) == ["none", "hebb", "none@flops", "none@params"]
    longer = frame[frame["arm"] == "none@flops"].iloc[0]
    dearest = frame[frame["arm"] == "hebb"].iloc[0]
    assert longer["training_flops"] >= dearest["training_flops"]
    assert frame[frame["arm"] == "none@params"]["parameters"].min() >= dearest["parameters"]
    before = stamps(Path("g"))
    assert main(words) == 0
    assert stamps(Path("g")) == before


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["mechanism=none,prezyn"], "mechanism 'prezyn' is unknown: did you mean 'presyn'"),
        (["seed=0"], "the grid has no arms: give mechanism=a,b"),
        (["mechanism=none", "hydra.sweeper.seeds=0"], "hydra.sweeper.seeds = 0 is not valid"),
        (["mechanism=none", "hydra.sweeper.controls=[flop]"], "'flop' is unknown: did you mean 'flops'"),
        (["mechanism=hebb", "mechanism.hebb.rank=0,4"], "mechanism.hebb.rank = 0 is not valid"),
    ],
)
def test_errors_come_before_any_run(
    place: Path, words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TINY, "run_dir=g", *words]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and line in err
    assert not list(Path("g").glob("*/config.yaml"))


def test_a_folder_with_other_runs_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "mechanism=none", "seed=0", "run_dir=g"]) == 0
    assert main([*TINY, "mechanism=none", "seed=0", "run_dir=g", "optimizer.lr=0.5"]) == 1
    err = capsys.readouterr().err
    assert "g/none_seed0 holds a run with optimizer.lr = 0.002, this grid has 0.5: choose another run_dir" in err


def test_a_job_waits_for_another_writer_of_its_folder(tmp_path: Path) -> None:
    code = "import sys, time; from pathlib import Path; from bouton.evidence.grid.job import alone\n"
    code += "with alone(Path(sys.argv[1]), ''):\n    print('in', flush=True); time.sleep(1.5)\n"
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "run")], stdout=subprocess.PIPE)
    assert other.stdout is not None and other.stdout.readline() == b"in\n"
    begin = time.monotonic()
    with alone(tmp_path / "run", "run"):
        assert time.monotonic() - begin > 0.5
        assert other.wait() == 0 or other.poll() is None
    other.wait()
    other.stdout.close()


class _DyingLauncher:
    """Its workers are killed in the first launches; later ones do nothing and say so."""

    def __init__(self, deaths: int) -> None:
        self.deaths, self.launches = deaths, 0

    def launch(self, words: list[list[str]], initial_job_idx: int) -> list[object]:
        self.launches += 1
        if self.launches <= self.deaths:
            raise BrokenProcessPool("a worker was killed")
        return []


@pytest.mark.parametrize(("deaths", "launches"), [(2, 3), (9, 3)])
def test_a_launcher_that_dies_is_tried_again(tmp_path: Path, deaths: int, launches: int) -> None:
    grid, launcher = Grid.__new__(Grid), _DyingLauncher(deaths)
    grid.folder = tmp_path
    grid._launcher = lambda runs: launcher  # type: ignore[method-assign]
    runs = [Run("hebb_seed0", Arm("hebb"), 0, ())]
    if deaths < launches:
        grid._make(runs, runs)
    else:
        with pytest.raises(TrainingError, match="a worker of the launcher ended without an error"):
            grid._make(runs, runs)
    assert launcher.launches == launches


def test_the_job_can_be_sent_to_another_process() -> None:
    job = pickle.loads(pickle.dumps(RecordedJob(main, {"a": Arm("hebb")}, {"a": 1}, 1)))
    assert job.arms["a"].label == "hebb" and job.task is main


@pytest.mark.slow
def test_a_killed_grid_goes_on_to_the_same_answer(place: Path) -> None:
    words = [sys.executable, "-m", "bouton", "train", *TINY, "trainer.max_steps=60", "trainer.val_every=20",
             "mechanism=none,hebb", "seed=0"]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*words, "run_dir=whole"], check=True, env=environment, capture_output=True)
    process = subprocess.Popen([*words, "run_dir=killed"], env=environment, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)  # fmt: skip
    checkpoint = place / "killed" / "hebb_seed0" / "checkpoints" / "last.ckpt"
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.02)
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = stamps(place / "killed")
    assert "hebb_seed0" not in before  # killed in the middle of the second run
    again = subprocess.run([*words, "run_dir=killed"], check=True, env=environment, capture_output=True, text=True)
    assert "1 finished; 1 begun, go on" in again.stdout
    after = stamps(place / "killed")
    assert {name: after[name] for name in before} == before
    pd.testing.assert_frame_equal(load("whole")[METRICS], load("killed")[METRICS])
    for run in ("none_seed0", "hebb_seed0"):
        assert (place / "whole" / run / "metrics.csv").read_text() == (
            place / "killed" / run / "metrics.csv"
        ).read_text()
    assert json.loads((place / "killed" / "hebb_seed0" / "summary.json").read_text())["resumed_from_step"] is not None
