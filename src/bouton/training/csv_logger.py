"""A CSV logger whose files survive a kill and continue exactly after a resume.

Three tables, by the prefix of the metric: ``vitals/`` goes to ``vitals.csv``, ``cost/`` (timings, which no two runs
share) to ``costs.csv``, all others to ``metrics.csv``, which therefore is a pure function of the configuration.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from bouton.files import write_text

Row = dict[str, str]


class Table:
    """One CSV file with a row per step. The row of the present step is held back until the step is over."""

    def __init__(self, path: Path, keep_until: int | None) -> None:
        """Continue ``path`` with the rows of steps <= ``keep_until`` (None: begin anew).

        A row that a kill has cut short is dropped.
        """
        self.path = path
        self.columns: list[str] = ["step"]
        self._row: Row = {}
        self.last_step = -1
        self._written = False  # the row of the last step is in the file
        rows: list[Row] = []
        if keep_until is not None:
            rows = [row for row in self._read() if int(row["step"]) <= keep_until]
        if rows:
            self.last_step, self._written = int(rows[-1]["step"]), True
        if path.exists():
            self._rewrite(rows)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Put ``values`` into the row of ``step``; steps must not decrease."""
        if step < self.last_step:
            raise ValueError(f"{self.path.name}: step {step} comes after step {self.last_step}")
        if step > self.last_step:
            self.flush()
            self._row, self.last_step, self._written = {"step": str(step)}, step, False
        elif not self._row:  # the row was already written: complete it
            self._row = self._read()[-1]
        self._row.update({name: _text(value) for name, value in values.items()})

    def flush(self) -> None:
        """Write the present row."""
        if not self._row:
            return
        row, self._row = self._row, {}
        new = [name for name in row if name not in self.columns]
        if new or self._written:
            rows = self._read()
            self.columns += new
            self._rewrite([*(rows[:-1] if self._written else rows), row])
        else:
            begin = not self.path.exists()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", newline="") as file:
                file.write(self._format([row], header=begin))
        self._written = True

    def _read(self) -> list[Row]:
        if not self.path.exists():
            return []
        text = self.path.read_text()
        lines = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1])))
        if not lines or lines[0][:1] != ["step"]:
            return []
        self.columns = lines[0]
        rows = [dict(zip(lines[0], line, strict=True)) for line in lines[1:] if len(line) == len(lines[0])]
        return [{name: value for name, value in row.items() if value != ""} for row in rows]

    def _rewrite(self, rows: list[Row]) -> None:
        write_text(self.path, self._format(rows, header=True))

    def _format(self, rows: list[Row], *, header: bool) -> str:
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        if header:
            writer.writerow(self.columns)
        writer.writerows([[row.get(name, "") for name in self.columns] for row in rows])
        return out.getvalue()


class CsvLogger(Logger):
    """Writes ``metrics.csv``, ``vitals.csv`` and ``costs.csv`` into a run folder.

    Args:
        folder: the run folder.
        resume_step: the optimizer step of the checkpoint from which the run goes on; later rows are dropped.
    """

    def __init__(self, folder: Path, resume_step: int | None = None) -> None:
        super().__init__()
        self._folder = Path(folder)
        self._resume_step = resume_step
        self._tables: dict[str, Table] = {}

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def open(self) -> None:
        """Create or cut the tables."""
        for file in ("metrics", "vitals", "costs"):
            self._tables[file] = Table(self._folder / f"{file}.csv", self._resume_step)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run folder holds the resolved configuration."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        parts: dict[str, dict[str, float]] = {}
        for name, value in metrics.items():
            prefix = name.partition("/")[0]
            file = {"vitals": "vitals", "cost": "costs"}.get(prefix, "metrics")
            short = name.partition("/")[2] if file != "metrics" else name
            parts.setdefault(file, {})[short] = float(value)
        for file, values in parts.items():
            # What a mechanism logs with `self.log` arrives under Lightning's own count, which lags by one step.
            self._tables[file].add(max(int(step or 0), self._tables[file].last_step), values)

    @rank_zero_only
    def save(self) -> None:
        for table in self._tables.values():
            table.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()


def _text(value: float) -> str:
    """Shortest text that reads back as the same float."""
    number = float(value)
    return repr(int(number)) if math.isfinite(number) and number == int(number) and abs(number) < 1e15 else repr(number)
