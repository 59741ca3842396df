"""Kill a grid at random and run it again, until it is done: what finished must be kept, the final table the same.

    python benchmarks/kill_grid.py --kills 20 --launcher basic --json kills.json

A grid of tiny runs (three arms, two seeds, and the controls for equal FLOPs and parameters) is run once without
interruption. Then the same command is started over and over in another folder; at a random time SIGKILL hits a random
process of it (with ``--launcher joblib`` its workers, too). When a grid is done a new one begins, until the kills are
used up. After each kill every finished run must be untouched, at the end every table must equal the first one's, and
every ``metrics.csv`` byte for byte.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from bouton.evidence import load

WORDS = (
    "-m", "hydra/sweeper=grid", "model=tiny", "model.num_layers=1", "model.hidden_size=16", "data.seq_len=16",
    "data.batch_size=2", "data.max_bytes=100000", "data.val_tokens=256", "data.tokenizer.kind=bytes",
    "trainer.accelerator=cpu", "trainer.max_steps=150", "trainer.val_every=50", "callbacks.checkpoint.save_every=10",
    "kernels=torch", "mechanism=none,hebb,presyn+hebb", "seed=0,1", "hydra.sweeper.controls=[flops,params]",
)  # fmt: skip
SAME = ["arm", "seed", "status", "step", "final_val_loss", "final_train_loss", "best_val_loss", "parameters", "tokens"]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--launcher", choices=("basic", "joblib"), default="basic")
    parser.add_argument("--seed", type=int, default=0, help="of the random times and processes")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    words = [*WORDS, *(["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"] if options.launcher == "joblib" else [])]
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place) / "whole"
        begin = time.monotonic()
        if start(words, whole).wait() != 0:
            raise SystemExit("the uninterrupted grid failed")
        seconds = time.monotonic() - begin
        kills = grids = survived = different = 0
        victims: list[str] = []
        while kills < options.kills:
            folder = Path(place) / f"killed{grids}"
            while True:
                before = finished(folder)
                process = start(words, folder)
                end = time.monotonic() + chance.uniform(0.15, 0.8) * seconds
                while process.poll() is None and (kills >= options.kills or time.monotonic() < end):
                    time.sleep(0.05)
                if process.poll() is not None:
                    break
                family = tree(process.pid)
                victim = chance.choice(family)
                os.kill(victim, signal.SIGKILL)
                kills += 1
                victims.append("main" if victim == process.pid else "worker")
                if victim != process.pid:  # the grid has to cope, or to end with an error
                    process.wait()
                process.wait()
                after = finished(folder)
                survived += all(after.get(name) == stamp for name, stamp in before.items())
                print(f"kill {kills} ({victims[-1]}): {len(after)} runs finished", flush=True)
            while process.returncode != 0:  # a killed worker ended it
                process = start(words, folder)
                process.wait()
            grids += 1
            different += not same(whole, folder)
    record = {
        "launcher": options.launcher,
        "kills": kills,
        "of the main process": victims.count("main"),
        "kills after which every finished run was untouched": survived,
        "grids": grids,
        "grids that differ from the uninterrupted one": different,
    }
    print("\n".join(f"{name}: {value}" for name, value in record.items()))
    if options.json:
        options.json.write_text(json.dumps(record, indent=2) + "\n")
    return int(different > 0 or survived < kills)


def start(words: list[str], folder: Path) -> subprocess.Popen[bytes]:
    """The command, with its output in a file beside the folder."""
    command = [sys.executable, "-m", "bouton", "train", *words, f"run_dir={folder}"]
    with Path(f"{folder}.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})


def finished(folder: Path) -> dict[str, int]:
    """Run -> when it finished."""
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("*/summary.json")}


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += tree(int(child))
    return found


def same(first: Path, second: Path) -> bool:
    """Whether two grids came to the same answer."""
    a, b = load(first), load(second)
    try:
        pd.testing.assert_frame_equal(a[SAME], b[SAME])
    except AssertionError as error:
        print(error)
        return False
    tables = [[(Path(folder) / "metrics.csv").read_bytes() for folder in frame["folder"]] for frame in (a, b)]
    return tables[0] == tables[1]


if __name__ == "__main__":
    sys.exit(main())
