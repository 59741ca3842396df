"""One trial, inside the process that a Hydra launcher gave it: runs the task and puts the outcome into the journal."""

from __future__ import annotations

import json
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import TaskFunction
from omegaconf import DictConfig

from bouton.sweeps.journal import NAME, Journal, exclusive

FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"
TRIALS = "trials"
HOPELESS = "stopped as hopeless"  # the status in the summary of a run that the extrapolation ended

log = logging.getLogger("bouton.sweeps")


@dataclass(frozen=True)
class Trial:
    """A task function whose outcome cannot get lost: the launcher may die with its return value.

    The job's folder is ``<sweep>/trials/<id>``; a trial that is in the journal already is not run again, and two
    processes never work in one folder (a killed search can leave workers behind that finish their trial).

    Args:
        task: the application's own task function; its return value is what is minimised.
    """

    task: TaskFunction

    def __call__(self, cfg: DictConfig) -> float:
        folder = Path(str(HydraConfig.get().runtime.output_dir))
        journal = Journal(folder.parent.parent / NAME)
        with exclusive(folder / ".trial.lock"):
            journal.refresh()
            record = journal.trials.get(folder.name)
            if record is None:
                record = self._run(cfg, folder, journal)
        value = record.get("value")
        return math.nan if value is None else float(value)

    def _run(self, cfg: DictConfig, folder: Path, journal: Journal) -> dict[str, Any]:
        begin = time.monotonic()
        try:
            value = float(self.task(cfg))
            outcome: dict[str, Any] = {"status": FINISHED, "value": value, **run_facts(folder)}
            if not math.isfinite(value):
                outcome |= {"status": FAILED, "error": f"the objective is {value}"}
        except Exception as error:  # a trial that fails says something about its parameters, the search goes on
            text = " ".join(f"{type(error).__name__}: {error}".split())[:500]
            log.warning("trial %s failed: %s", folder.name, text)
            outcome = {"status": FAILED, "value": None, "error": text}
        seconds = round(time.monotonic() - begin, 3)
        return journal.append("trial", id=folder.name, **outcome, seconds=seconds)


def run_facts(folder: Path) -> dict[str, Any]:
    """What a training run in ``folder`` left in its summary, as far as the score needs it; empty for other tasks."""
    try:
        summary = json.loads((folder / "summary.json").read_text())
    except (OSError, ValueError):
        return {}
    from bouton.training.curves import read_series

    _, losses = read_series(folder / "metrics.csv").get("train/loss", ([], []))
    facts: dict[str, Any] = {
        "facts": {
            "loss": summary["final"].get("val_loss"),
            "first_loss": losses[0] if losses else None,
            "step": summary.get("step"),
            **{name: value for name, value in summary["costs"].items() if isinstance(value, int | float)},
        }
    }
    if summary.get("status") == HOPELESS:
        facts |= {"status": STOPPED, "prediction": summary["prediction"]}
    return facts
