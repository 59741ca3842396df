"""What a dashboard shows of each run, read from its folder alone; a run under way is shown as far as it has come."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from bouton.evidence.frame import load
from bouton.training.callbacks.media import FOLDER, read_samples
from bouton.training.curves import Series, read_series

# File -> prefix under which its columns were logged.
_TABLES = {"metrics.csv": "", "vitals.csv": "vitals/", "costs.csv": "cost/"}


@dataclass(frozen=True)
class RunData:
    """One run.

    Attributes:
        name, arm, seed, status: as in :func:`bouton.evidence.load`.
        series: metric, by the name under which it was logged -> (steps, values).
        row: its row of :func:`bouton.evidence.load`: final metrics and costs.
        samples: ``step`` and ``text``.
        media: ``mechanism/picture`` -> (step, PNG), oldest first.
    """

    name: str
    arm: str
    seed: int
    status: str
    series: Series
    row: dict[str, Any]
    samples: list[dict[str, Any]] = field(default_factory=list)
    media: dict[str, list[tuple[int, Path]]] = field(default_factory=dict)


def collect(folder: str | Path) -> list[RunData]:
    """The runs of a run folder or of a sweep, in the order of :func:`bouton.evidence.load`.

    Raises:
        DataError: no such folder, or no run in it.
    """
    return [_run({str(key): value for key, value in row.items()}) for row in load(folder).to_dict("records")]


def _run(row: dict[str, Any]) -> RunData:
    folder = Path(row["folder"])
    series: Series = {}
    for file, prefix in _TABLES.items():
        series.update({prefix + name: values for name, values in read_series(folder / file).items()})
    media: dict[str, list[tuple[int, Path]]] = {}
    for path in sorted((folder / FOLDER).rglob("*.png")):
        if path.stem.isdecimal():
            name = path.parent.relative_to(folder / FOLDER).as_posix()
            media.setdefault(name, []).append((int(path.stem), path))
    clean = {key: value for key, value in row.items() if not (pd.api.types.is_scalar(value) and pd.isna(value))}
    return RunData(
        name=str(row["run"]),
        arm=str(row["arm"]),
        seed=int(row["seed"]),
        status=str(row["status"]),
        series=series,
        row=clean,
        samples=read_samples(folder),
        media=media,
    )
