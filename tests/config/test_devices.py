"""GPUs are handed out one to each job, tested with names that no machine needs to have."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bouton.config.devices import VISIBLE, for_job, lease, visible_devices
from bouton.errors import ConfigError

JOB = """
import os, sys, time
from pathlib import Path
from bouton.config.devices import lease
with lease(int(sys.argv[2]), ["7", "8", "9"], Path(sys.argv[1]) / "locks") as held:
    begin = time.time()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ",".join(held)
    time.sleep(0.4)
    print(",".join(held), begin, time.time())
"""


@pytest.mark.parametrize(("count", "most"), [(1, 3), (2, 1)])
def test_no_device_is_held_by_two_jobs_at_once(tmp_path: Path, count: int, most: int) -> None:
    words = [sys.executable, "-c", JOB, str(tmp_path), str(count)]
    jobs = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(5)]
    spans = []
    for job in jobs:
        held, begin, end = job.communicate(timeout=60)[0].split()
        assert job.returncode == 0
        spans.append((set(held.split(",")), float(begin), float(end)))
    for index, (held, begin, end) in enumerate(spans):
        assert len(held) == count and held <= {"7", "8", "9"}
        for other, begun, ended in spans[index + 1 :]:
            assert not held & other or end <= begun or ended <= begin
    at_once = [sum(b <= begin < e for _, b, e in spans) for _, begin, _ in spans]
    assert max(at_once) <= most


def test_a_killed_job_gives_its_device_back(tmp_path: Path) -> None:
    code = JOB.replace("0.4", "60").replace("    time.sleep", "    print('held', flush=True)\n    time.sleep")
    job = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), "3"], stdout=subprocess.PIPE, text=True)
    assert job.stdout is not None and job.stdout.readline() == "held\n"
    job.kill()
    job.wait()
    begin = time.monotonic()
    with lease(3, ["7", "8", "9"], tmp_path / "locks") as held:
        assert held == ["7", "8", "9"]
    assert time.monotonic() - begin < 5


def test_what_is_visible_is_as_before_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VISIBLE, "4, 5")
    assert visible_devices() == ["4", "5"]
    with lease(1, folder=tmp_path), lease(1, ["4", "5"], tmp_path) as second:
        assert second == ["5"] and os.environ[VISIBLE] == "5"
    assert os.environ[VISIBLE] == "4, 5"
    monkeypatch.setenv(VISIBLE, "")
    assert visible_devices() == []
    with pytest.raises(ConfigError, match=r"trainer\.devices = 3 is too many: 2 GPU"), lease(3, ["4", "5"], tmp_path):
        pass


def test_a_job_on_a_cpu_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VISIBLE, "4,5")
    for trainer in ({"accelerator": "cpu", "devices": 1}, {"accelerator": "auto", "devices": [1]}):
        with for_job(trainer):
            assert os.environ[VISIBLE] == "4,5"
