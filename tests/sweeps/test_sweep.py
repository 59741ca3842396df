"""Whole searches: phases, files, launchers, kills. The objective is a fake that costs nothing, or a tiny training."""

from __future__ import annotations

import json
import math
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

sys.path.insert(0, str(Path(__file__).parent))

import kills

import bouton
from bouton.config.paths import conf_dir

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A search that nobody disturbed, with everything that it wrote: one for all workers of pytest."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if hasattr(request.config, "workerinput") else base) / "search"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "lock"):
        if not (folder / "seconds").exists():
            seconds = kills.run(kills.command(folder / "whole", f"log={folder}/log"))
            (folder / "seconds").write_text(str(seconds))
    return folder / "whole"


def test_a_search_goes_through_its_phases_and_gets_better(whole: Path) -> None:
    records = kills.decisions(whole)
    (screen,) = [r for r in records if r["kind"] == "screen"]
    assert set(list(screen["influence"])[:2]) == {"x", "y"}  # the two that are squared
    phases = {r["phase"]: r for r in records if r["kind"] == "generation"}
    assert list(phases) == ["influential", "other"]
    assert set(phases["influential"]["candidates"][0]) == set(list(screen["influence"])[:3])
    end = records[-1]
    assert end["kind"] == "end" and end["score"] < 5 < math.log(10) ** 2 + 0.25 + 1
    assert len(phases["other"]["candidates"][0]) == 2
    best = min(s for r in records if r["kind"] == "generation" for s in r["scores"] if s is not None)
    assert end["score"] <= best


def test_failed_trials_are_recorded_and_penalised(whole: Path) -> None:
    failed = [record for record in kills.outcomes(whole).values() if record[0] == "failed"]
    assert failed and all(value is None for _, value in failed)
    generations = [r for r in kills.decisions(whole) if r["kind"] == "generation"]
    assert all([s is None for s in r["scores"]] == [s == "failed" for s in r["statuses"]] for r in generations)


def test_files(whole: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    present = {path.name for path in whole.iterdir()}
    assert present >= {"progress.jsonl", "best.yaml", "result.json", "convergence.png", "multirun.yaml", "tensorboard"}
    events = EventAccumulator(str(whole / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    generations = [r for r in kills.decisions(whole) if r["kind"] == "generation"]
    tags = events.Tags()
    assert {"search/best", "search/sigma", "mean/y", "best/n"} <= set(tags["scalars"])
    assert {"search/scores", "candidates/y"} <= set(tags["histograms"])
    assert len(events.Images("search/covariance")) == len(generations)
    shown = [event.value for event in events.Scalars("search/best")]
    assert shown == pytest.approx([r["best"]["score"] for r in generations])
    assert json.loads((whole / "result.json").read_text())["score"] == kills.decisions(whole)[-1]["score"]


def test_the_same_command_again_runs_nothing_and_another_is_refused(whole: Path) -> None:
    log = whole.parent / "log"
    before = log.read_text(), kills.decisions(whole)
    kills.run(kills.command(whole, f"log={log}"))
    assert (log.read_text(), kills.decisions(whole)) == before
    other = subprocess.run(
        [*kills.command(whole, f"log={log}"), "hydra.sweeper.sigma=0.1"],
        env=kills.environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert other.returncode and "holds another search (sigma: 0.25 there, 0.1 here)" in other.stderr


@pytest.mark.parametrize(
    ("plugin", "words"),
    [
        ("submitit", ("hydra/launcher=submitit_local", "hydra.launcher.timeout_min=9")),
        (
            "ray",
            ("hydra/launcher=cluster", "hydra.launcher.ray.remote.num_gpus=0", "+hydra.launcher.ray.init.num_cpus=2"),
        ),
    ],
)
def test_the_local_executors_of_cluster_launchers_find_the_same(
    plugin: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    pytest.importorskip(plugin)
    short = ("hydra.sweeper.trials=8", "hydra.sweeper.group_trials=0", "hydra.sweeper.influential=9")
    kills.run(kills.command(tmp_path / "basic", *short))
    kills.run(kills.command(tmp_path / "other", *short, *words))
    assert kills.differs(tmp_path / "basic", tmp_path / "other") == []


@pytest.mark.parametrize(
    ("option", "plugin", "target"),
    [
        ("workers", "hydra_plugins.hydra_joblib_launcher", "JoblibLauncher"),
        ("slurm", "hydra_plugins.hydra_submitit_launcher", "SlurmLauncher"),
        ("cluster", "hydra_plugins.hydra_ray_launcher", "RayLauncher"),
    ],
)
def test_shipped_launchers_compose(option: str, plugin: str, target: str) -> None:
    pytest.importorskip(plugin)
    words = [sys.executable, str(kills.ROOT / "train.py"), f"hydra/launcher={option}", "--cfg", "hydra"]
    done = subprocess.run(words, env=kills.environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert target in done.stdout


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_searches_with_any_number_of_workers_end_alike(workers: int, whole: Path) -> None:
    """Once here; ``python tests/sweeps/kills.py 20`` and ``... 20 joblib`` kill twenty times."""
    seconds = float((whole.parent / "seconds").read_text())
    assert kills.main(1, *(["joblib"] if workers > 1 else []), undisturbed=(whole, seconds)) == 0


def test_a_command_without_a_folder_goes_on_where_the_same_one_was_killed(tmp_path: Path) -> None:
    words = [word for word in kills.command(tmp_path) if not word.startswith("hydra.sweep.dir")]
    words.append("hydra.sweeper.trials=16")
    draw = random.Random(1)
    for _ in range(20):  # until the kill comes after the first trials
        process = subprocess.Popen(words, env=kills.environment(), cwd=tmp_path, stdout=subprocess.DEVNULL)
        while process.poll() is None and not list(tmp_path.glob("multirun/*/*/trials/screen*")):
            time.sleep(0.02)
        time.sleep(draw.random())
        process.kill()
        process.wait()
        if list(tmp_path.glob("multirun/*/*/progress.jsonl")):
            break
    done = subprocess.run(words, env=kills.environment(), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (journal,) = tmp_path.glob("multirun/*/*/progress.jsonl")
    assert f"continuing the search in {journal.parent}" in done.stdout
    assert kills.decisions(journal.parent)[-1]["kind"] == "end"


def test_all_failing_ends_in_one_line(tmp_path: Path) -> None:
    words = [w for w in kills.command(tmp_path / "x") if "fragile" not in w]
    done = subprocess.run(
        [*words, "fragile=1.0", "hydra.sweeper.influential=9"], env=kills.environment(), capture_output=True, text=True
    )
    assert done.returncode
    assert "every trial of 2 generations in a row failed, the last with: ValueError: too fragile" in done.stderr


# -- a tiny training -------------------------------------------------------------------------------------------------

TINY = (
    "-m", "hydra/sweeper=cmaes", "experiment=tune_presyn", "trainer.accelerator=cpu", "trainer.max_steps=10",
    "trainer.val_every=2", "callbacks.checkpoint.save_every=2", "data.seq_len=32", "data.batch_size=2",
    "data.max_bytes=200000", "data.val_tokens=512", "data.tokenizer.vocab_size=300", "hydra.sweeper.gate=null",
    "model.num_layers=1", "hydra.sweeper.influential=12", "hydra.sweeper.trials=8", "hydra.sweeper.popsize=4",
    "hydra.sweeper.confirm_seeds=0", "hydra.sweeper.hopeless.after=2", "hydra.sweeper.costs=[training_flops_per_token]",
    "seed=0", "kernels=torch",
)  # fmt: skip


def test_a_search_over_trainings_that_is_killed_in_one_ends_alike_and_its_best_is_an_experiment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BOUTON_CACHE", str(tmp_path / "cache"))
    start = [sys.executable, str(kills.ROOT / "train.py"), *TINY]
    kills.run([*start, f"run_dir={tmp_path}/whole"])
    words = [*start, f"run_dir={tmp_path}/cut"]
    for trial in ("start_seed0", "all_g001_c02_seed0"):
        process = subprocess.Popen(words, env=kills.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        checkpoint = tmp_path / "cut" / "trials" / trial / "checkpoints" / "last.ckpt"
        while process.poll() is None and not checkpoint.exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    kills.run(words)
    assert kills.differs(tmp_path / "whole", tmp_path / "cut") == []
    resumed = json.loads((tmp_path / "cut" / "trials" / "all_g001_c02_seed0" / "summary.json").read_text())
    assert resumed["resumed_from_step"] is not None  # the trial itself went on from its checkpoint

    end = kills.decisions(tmp_path / "cut")[-1]
    cfg = bouton.compose(f"experiment={tmp_path}/cut/best.yaml", "seed=3")
    for key, value in end["values"].items():
        assert cfg.mechanism.presyn[key.rpartition(".")[2]] == value
    assert (cfg.trainer.max_steps, cfg.model.num_layers, cfg.data.seq_len, cfg.seed) == (10, 1, 32, 3)
    again = [str(kills.ROOT / "train.py"), f"experiment={tmp_path}/cut/best.yaml", f"run_dir={tmp_path}/best"]
    kills.run([sys.executable, *again])
    trial = tmp_path / "cut" / "trials" / f"{end['best']}_seed0" / "summary.json"
    final = json.loads((tmp_path / "best" / "summary.json").read_text())["final"]["val_loss"]
    assert final == json.loads(trial.read_text())["final"]["val_loss"]


def test_the_gate_stops_what_cannot_be_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOUTON_CACHE", str(tmp_path / "cache"))
    words = [w for w in TINY if "gate" not in w]
    command = [sys.executable, str(kills.ROOT / "train.py"), *words, f"run_dir={tmp_path}/run", "optimizer.lr=1e-9"]
    done = subprocess.run(command, env=kills.environment(), capture_output=True, text=True)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: gate: ") and "hydra.sweeper.gate.enforce=false" in last
    trials = kills.outcomes(tmp_path / "run")
    probes = {f"probe{i}" for i in range(4)}
    assert {name.partition("_")[0] for name in trials} == {"start", "none", "bad", *probes}


def test_shipped_spaces_fit_their_mechanisms() -> None:
    for path in sorted((conf_dir() / "sweep").glob("*.yaml")):
        assert dict(bouton.compose(f"mechanism={path.stem}", f"sweep={path.stem}").sweep)
