"""Batches of trials through the Hydra launcher of the command; what the journal knows already is not run again."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.plugins.launcher import Launcher

from bouton.sweeps.journal import Journal, Record
from bouton.sweeps.trial import FAILED, TRIALS

log = logging.getLogger("bouton.sweeps")


@dataclass(frozen=True)
class Job:
    """A trial to run: its name, which is that of its folder, and the words that compose it."""

    id: str
    words: tuple[str, ...]
    refused: str | None = None  # why it cannot be tried at all


@dataclass
class Trials:
    """Runs jobs.

    Args:
        launcher: of Hydra, set up with a :class:`~bouton.sweeps.trial.Trial`.
        journal: of the search.
        folder: of the search.
    """

    launcher: Launcher
    journal: Journal
    folder: Path
    launched: int = 0

    def run(self, jobs: Sequence[Job]) -> Mapping[str, Record]:
        """Run what is not in the journal yet, all in one batch; job -> its record.

        A worker that dies takes its batch with it: what it left open is then run one by one, and what dies again counts
        as failed.
        """
        self.journal.refresh()
        for job in self._open(jobs):
            if job.refused is not None:
                self.journal.append("trial", id=job.id, status=FAILED, value=None, error=job.refused, seconds=0.0)
        self._launch(self._open(jobs))
        for job in self._open(jobs):
            error = self._launch([job])
            if self._open([job]):
                text = " ".join(f"the process ended without an outcome: {error or 'it was killed?'}".split())[:500]
                log.warning("trial %s failed: %s", job.id, text)
                self.journal.append("trial", id=job.id, status=FAILED, value=None, error=text, seconds=0.0)
        return {job.id: self.journal.trials[job.id] for job in jobs}

    def _open(self, jobs: Sequence[Job]) -> list[Job]:
        return [job for job in jobs if job.id not in self.journal.trials]

    def _launch(self, jobs: Sequence[Job]) -> str | None:
        """Launch one batch; the error that came out of the launcher, if any."""
        if not jobs:
            return None
        first, self.launched = self.launched, self.launched + len(jobs)
        error = None
        try:
            returns = self.launcher.launch([self._words(job) for job in jobs], initial_job_idx=first)
            failures = [r._return_value for r in returns if isinstance(r._return_value, Exception)]
            error = f"{type(failures[0]).__name__}: {failures[0]}" if failures else None
        except Exception as failure:  # a killed worker, a time limit of the cluster: not the trial's own error
            error = f"{type(failure).__name__}: {failure}"
        self.journal.refresh()
        return error

    def _words(self, job: Job) -> list[str]:
        where = str(self.folder).replace('"', '\\"')
        words = [*job.words, f'hydra.sweep.dir="{where}"', f"hydra.sweep.subdir={TRIALS}/{job.id}"]
        if (self.folder / TRIALS / job.id / "checkpoints" / "last.ckpt").exists():
            words.append("ckpt_path=last")  # it was killed: it goes on where it was
        return words
