"""Jobs on several devices: how many, what they are told, and real processes under Hydra's launchers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from bouton.config import elastic
from bouton.errors import ConfigError

# Takes the place of `bouton.training` in every process below the test, so that no process imports Lightning.
_STAND_IN = """
import json, os, sys, time, types
from pathlib import Path

def train(cfg):
    from bouton.errors import DataError
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    behaviour = os.environ.get("STAND_IN", "")
    if behaviour == "fail" and rank == world - 1:
        raise DataError("data.path = 'x' does not exist")
    if behaviour:
        print("ready", os.getpid(), flush=True)
        time.sleep(60)
    total = float(rank + 1)
    if world > 1:
        import torch, torch.distributed as dist
        dist.init_process_group("gloo")
        tensor = torch.tensor(total)
        dist.all_reduce(tensor)
        dist.destroy_process_group()
        total = float(tensor)
    record = {"world": world, "total": total, "seed": cfg.seed, "mechanism": list(cfg.mechanism)}
    Path(cfg.run_dir, f"rank{rank}.json").write_text(json.dumps(record))
    return total + cfg.seed

sys.modules["bouton.training"] = types.ModuleType("bouton.training")
sys.modules["bouton.training"].train = train
"""


@pytest.fixture
def command(tmp_path: Path) -> tuple[list[str], dict[str, str]]:
    """`bouton train` with a stand-in for training, on two cores, and its environment."""
    place = tmp_path / "stand_in"
    place.mkdir()
    (place / "sitecustomize.py").write_text(_STAND_IN)
    path = os.pathsep.join(filter(None, [str(place), os.environ.get("PYTHONPATH", "")]))
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    for key in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID", "HYDRA_FULL_ERROR"):
        env.pop(key, None)
    return [sys.executable, "-m", "bouton", "train", "trainer.accelerator=cpu"], env


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


needs_two_cores = pytest.mark.skipif(elastic._available("cpu")[1] < 2, reason="two processes need two cores")


@pytest.mark.parametrize(("devices", "count"), [(1, 1), ("1", 1), ("auto", 1), (-1, 1), ([0], 1), (None, 1)])
def test_device_count(devices: object, count: int) -> None:
    assert elastic.device_count({"devices": devices, "accelerator": "cpu"}) == count


@pytest.mark.parametrize("devices", [0, -2, "many", [], 1.5])
def test_device_count_refuses(devices: object) -> None:
    with pytest.raises(ConfigError, match=r"trainer.devices = .* is not valid"):
        elastic.device_count(OmegaConf.create({"devices": devices, "accelerator": "cpu"}))


@pytest.mark.parametrize("devices", [[0, 0], [99999], ["a"], [-1]])
def test_indices_must_exist_and_differ(devices: list[object]) -> None:
    with pytest.raises(ConfigError, match=r"trainer.devices = \[.*\] is not valid: this machine has the indices 0 to"):
        elastic.device_count(OmegaConf.create({"devices": devices, "accelerator": "cpu"}))


def test_workers_see_the_chosen_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elastic, "_available", lambda accelerator: ("CUDA device", 8))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert elastic._environment(2, {"devices": [2, 5]})["CUDA_VISIBLE_DEVICES"] == "2,5"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6,7")
    assert elastic._environment(2, {"devices": [2, 0]})["CUDA_VISIBLE_DEVICES"] == "7,4"
    assert elastic._environment(2, {"devices": 2})["CUDA_VISIBLE_DEVICES"] == "4,6,7"


def test_more_devices_than_there_are() -> None:
    with pytest.raises(ConfigError, match=r"trainer.devices = 4096 is too many: this machine has \d+ CPU core"):
        elastic.device_count({"devices": 4096, "accelerator": "cpu"})


def test_a_worker_gets_a_clean_rendezvous(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("RANK", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "GROUP_RANK"):
        monkeypatch.setenv(key, "1")
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setenv(elastic.FULL_ERROR_ASKED, "")
    env = elastic._environment(2, {"accelerator": "cpu"})
    assert not {"RANK", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "GROUP_RANK", "HYDRA_FULL_ERROR"} & set(env)
    assert env[elastic.PARENT] == str(os.getpid())
    monkeypatch.setenv(elastic.FULL_ERROR_ASKED, "1")
    assert elastic._environment(2, {"accelerator": "cpu"})["HYDRA_FULL_ERROR"] == "1"


def test_the_first_failure_is_reported(tmp_path: Path) -> None:
    for rank, (kind, moment) in enumerate([("RuntimeError", 2.0), ("DataError", 1.0)]):
        record = {"kind": kind, "message": f"rank {rank}", "time": moment}
        (tmp_path / f"failure-{rank}.json").write_text(json.dumps(record))
    error = elastic._failure(tmp_path, 1)
    assert (type(error).__name__, str(error)) == ("DataError", "rank 1")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_grid_over_compositions(command: tuple[list[str], dict[str, str]], tmp_path: Path) -> None:
    words, env = command
    words = [*words, "mechanism=none,presyn+hebb,hebb+presyn", "-m", "seed=0,1"]
    done = subprocess.run(words, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    (sweep,) = (tmp_path / "runs").iterdir()
    names = sorted(path.name for path in sweep.iterdir() if path.is_dir())
    arms = ["none", "none", "hebb+presyn", "hebb+presyn", "hebb+presyn", "hebb+presyn"]
    assert names == [f"{n}_{arm}_seed{n % 2}" for n, arm in enumerate(arms)]
    for n, arm in enumerate(arms):
        record = json.loads((sweep / names[n] / "rank0.json").read_text())
        assert record["seed"] == n % 2
        assert record["mechanism"] == [name for name in arm.split("+") if name != "none"]


@pytest.mark.slow
@pytest.mark.timeout(300)
@needs_two_cores
def test_two_devices_under_joblib(command: tuple[list[str], dict[str, str]], tmp_path: Path) -> None:
    words, env = command
    # `=` and `,` in the folder: it is passed on quoted
    words = [*words, "-m", "trainer.devices=2", "seed=0,1", "run_dir='grid,a=b'"]
    words += ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    done = subprocess.run(words, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["grid,a=b", "stand_in"]
    sweep = tmp_path / "grid,a=b"
    assert sorted(path.name for path in sweep.iterdir()) == ["0_none_seed0", "1_none_seed1", "multirun.yaml"]
    for seed in (0, 1):
        folder = sweep / f"{seed}_none_seed{seed}"
        for rank in (0, 1):
            record = json.loads((folder / f"rank{rank}.json").read_text())
            assert record == {"world": 2, "total": 3.0, "seed": seed, "mechanism": []}
        assert not (folder / ".elastic").exists()


@pytest.mark.slow
@pytest.mark.timeout(300)
@needs_two_cores
def test_failure_of_one_process_is_one_line(command: tuple[list[str], dict[str, str]], tmp_path: Path) -> None:
    words, env = command
    words += ["trainer.devices=2"]
    env["STAND_IN"] = "fail"
    done = subprocess.run(words, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert (done.returncode, done.stderr) == (1, "error: data.path = 'x' does not exist\n")
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(300)
@needs_two_cores
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_interrupt_ends_all_processes(command: tuple[list[str], dict[str, str]], tmp_path: Path) -> None:
    words, env = command
    env["STAND_IN"] = "sleep"
    with subprocess.Popen(
        [*words, "trainer.devices=2"], env=env, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        workers = [int(process.stdout.readline().split()[1]) for _ in range(2)]
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
        assert process.stderr.read().split() == ["interrupted"]
    assert not any(_alive(pid) for pid in workers)
