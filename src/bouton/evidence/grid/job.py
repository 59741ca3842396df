"""One run of a grid: locked against a second writer, continued where it stopped, recorded if it crashes."""

from __future__ import annotations

import math
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import TaskFunction
from omegaconf import DictConfig, open_dict, read_write

from bouton.config.messages import explain, one_line
from bouton.errors import BoutonError
from bouton.evidence.arms import Arm, write_record
from bouton.evidence.frame import CRASHED, FINISHED, STATUS, TRACEBACK, read_summary, status_of
from bouton.files import write_json, write_text

LAST = "checkpoints/last.ckpt"


class RecordedJob:
    """The task function of a grid, for any launcher: it is pickled with what it has to know of all runs.

    Args:
        task: the training job.
        arms: name of the run folder -> its arm.
        total: number of runs of the study; ``numbers`` says which one each is.
    """

    def __init__(self, task: TaskFunction, arms: Mapping[str, Arm], numbers: Mapping[str, int], total: int) -> None:
        self.task = task
        self.arms = dict(arms)
        self.numbers = dict(numbers)
        self.total = total

    def __call__(self, cfg: DictConfig) -> float:
        """The objective of the run; NaN if it crashed."""
        folder = Path(HydraConfig.get().runtime.output_dir)
        arm = self.arms[folder.name]
        title = f"run {self.numbers[folder.name]} of {self.total}: {arm.label}, seed {cfg.seed}"
        with alone(folder, title):
            if status_of(folder) == FINISHED:  # meanwhile, by another process
                return _objective(folder)
            write_record(folder, arm)
            try:
                (folder / STATUS).unlink(missing_ok=True)
                resumed = _continue_from_checkpoint(cfg, folder)
                print(f"{title}{', going on from its last checkpoint' if resumed else ''}", flush=True)
                return float(self.task(cfg))
            except KeyboardInterrupt:
                raise KeyboardInterrupt("interrupted: the same command goes on where the grid stopped") from None
            except Exception as error:
                line = record_crash(folder, error, seed=int(cfg.seed))
                print(f"{title} crashed: {line}", file=sys.stderr, flush=True)
                return math.nan


def record_crash(folder: Path, error: BaseException, *, seed: int) -> str:
    """Write ``traceback.txt`` and ``status.json`` into a run folder; returns the error in one line."""
    message = explain(error) if isinstance(error, Exception) else None
    line = message or f"{type(error).__name__}: {one_line(str(error))}"
    write_text(folder / TRACEBACK, "".join(traceback.format_exception(error)))
    write_json(
        folder / STATUS,
        {
            "status": CRASHED,
            "error": line,
            "kind": type(error).__name__,
            "users_error": isinstance(error, BoutonError),
            "traceback": TRACEBACK,
            "seed": seed,
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        },
    )
    return line


@contextmanager
def alone(folder: Path, title: str) -> Iterator[None]:
    """Hold the run's lock. A launcher's worker may outlive a killed grid and still write: then it is waited for."""
    try:
        import fcntl
    except ImportError:  # Windows has no such locks; there two grids must not share a folder
        yield
        return
    locks = folder.parent / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    with (locks / f"{folder.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{title}: another process is at it, waiting", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _continue_from_checkpoint(cfg: DictConfig, folder: Path) -> bool:
    """Set ``ckpt_path`` by what is in the folder now, also for the processes that the job may start."""
    resumed = (folder / LAST).is_file()
    cfg.ckpt_path = "last" if resumed else None
    settings: Any = HydraConfig.get()
    with read_write(settings), open_dict(settings):
        words = [word for word in settings.overrides.task if not word.startswith("ckpt_path=")]
        settings.overrides.task = [*words, *(["ckpt_path=last"] if resumed else [])]
    return resumed


def _objective(folder: Path) -> float:
    final = (read_summary(folder) or {}).get("final") or {}
    value = final.get("val_loss")
    return math.nan if value is None else float(value)
