"""Kills a search at random moments until it is through, and compares it with one that nobody disturbed.

``python tests/sweeps/kills.py 20`` kills 20 times; ``python tests/sweeps/kills.py 20 joblib`` lets trials run in two
workers and kills the search or one of them. Says how many kills hit, and what differs (nothing).
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
AXES = (
    "x=interval(-5,5)",
    "y=tag(log,interval(0.001,10))",
    "n=int(interval(1,20))",
    "kind=choice(a,b,c)",
    "fragile=interval(0,1)",
)
FAST = (
    f"hydra.searchpath=[file://{ROOT / 'conf'}]",
    "hydra/sweeper=cmaes",
    "hydra.sweeper.gate=null",
    "hydra.sweeper.trials=16",
    "hydra.sweeper.group_trials=8",
    "hydra.sweeper.popsize=8",
    "hydra.sweeper.influential=3",
    "hydra.sweeper.screen.trajectories=2",
    "hydra.sweeper.seeds=[0,1]",
    "hydra.sweeper.confirm_seeds=1",
)


def command(folder: Path, *more: str, script: Path = HERE / "app" / "fake.py") -> list[str]:
    """The command of a search in ``folder``."""
    return [sys.executable, str(script), "-m", *AXES, *FAST, f"hydra.sweep.dir={folder}", *more]


def environment() -> dict[str, str]:
    """With the sources and the configuration in reach."""
    paths = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "OMP_NUM_THREADS": "1",
    }


def run(words: list[str]) -> float:
    """Run to the end; seconds."""
    begin = time.monotonic()
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=900)
    if done.returncode:
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-4000:])
    return time.monotonic() - begin


def run_and_kill(words: list[str], after: float, draw: random.Random, workers: bool) -> bool:
    """Start, and send SIGKILL after some seconds, to the search or to one of its workers; whether it was running."""
    process = subprocess.Popen(words, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(timeout=after)
        return False
    except subprocess.TimeoutExpired:
        pass
    victims = children(process.pid) if workers else []
    if victims and draw.random() < 0.5:
        victim = draw.choice(victims)
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            return False
        process.wait(timeout=600)  # the search itself goes on
        return True
    process.kill()
    process.wait()
    return True


def children(pid: int) -> list[int]:
    """The worker processes below ``pid``."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            words = (entry / "cmdline").read_text()
        except (OSError, ValueError):
            continue
        if parent == pid and "loky" in words and "resource_tracker" not in words:
            found.append(int(entry.name))
    return found


def decisions(folder: Path) -> list[dict[str, Any]]:
    """Everything that the search asked and was told, in order."""
    lines = [json.loads(line) for line in (folder / "progress.jsonl").read_text().splitlines()]
    kept = [line for line in lines if line["kind"] in ("screen", "generation", "end")]
    return [{key: value for key, value in line.items() if key != "losses"} for line in kept]


def outcomes(folder: Path) -> dict[str, tuple[str, Any]]:
    """Trial -> its status and value; fails where one is recorded twice."""
    lines = [json.loads(line) for line in (folder / "progress.jsonl").read_text().splitlines()]
    trials = [line for line in lines if line["kind"] == "trial"]
    assert len({line["id"] for line in trials}) == len(trials), "a trial is recorded twice"
    return {line["id"]: (line["status"], line["value"]) for line in trials}


def main(kills: int, *more: str, seed: int = 0, undisturbed: tuple[Path, float] | None = None) -> int:
    """Returns the number of differences to a search that is made here, or to one in a folder that took so long."""
    joblib = "joblib" in more
    launcher = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2") if joblib else ()
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        whole, cut, log = Path(name) / "whole", Path(name) / "cut", Path(name) / "log"
        if undisturbed is None:
            seconds = run(command(whole, *launcher))
        else:
            whole, seconds = undisturbed
        hits = 0
        while hits < kills:
            begin = time.monotonic()
            hit = run_and_kill(command(cut, *launcher, f"log={log}"), draw.uniform(0.5, seconds), draw, joblib)
            hits += hit
            seconds = seconds if hit else min(seconds, time.monotonic() - begin)  # it was through before the kill came
            print(f"kill {hits} of {kills}", file=sys.stderr, flush=True)
            ended = (cut / "progress.jsonl").exists() and decisions(cut)[-1:] and decisions(cut)[-1]["kind"] == "end"
            if ended and hits < kills:  # it is through: what is left of the kills goes to another one
                if differs(whole, cut):
                    break
                (cut / "progress.jsonl").rename(cut / f"progress-{hits}.jsonl")
        run(command(cut, *launcher, f"log={log}"))
        found = differs(whole, cut)
        print(
            f"{hits} kills ({'search or worker, joblib' if joblib else 'search'}): {len(found)} differences {found[:3]}"
        )
        return len(found)


def differs(whole: Path, cut: Path) -> list[str]:
    """What two searches did differently."""
    first, second = decisions(whole), decisions(cut)
    found = [f"{a['kind']} {a['name']}" for a, b in zip(first, second, strict=False) if a != b]
    if len(first) != len(second):
        found.append(f"{len(first)} decisions, {len(second)} in the one that was killed")
    one, two = outcomes(whole), outcomes(cut)
    return found + [f"trial {key}" for key in sorted({*one, *two}) if one.get(key) != two.get(key)]


if __name__ == "__main__":
    raise SystemExit(main(int(sys.argv[1]), *sys.argv[2:]))
