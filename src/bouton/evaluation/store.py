"""Results in the run folder: ``evaluation/<task>.json`` and its pictures, whole or not there at all."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from bouton.errors import DataError
from bouton.files import remove_partials, write_atomically, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from bouton.evaluation.base import Result

FOLDER = "evaluation"
FORMAT = 1


def results_folder(run: Path, checkpoint: str) -> Path:
    """Where results lie: ``evaluation/`` for the best checkpoint, a folder in it for another one."""
    return run / FOLDER if checkpoint == "best" else run / FOLDER / Path(checkpoint).stem


def file_name(label: str) -> str:
    """The file of a task: ``lm_eval:arc_easy`` is in ``lm_eval-arc_easy.json``."""
    return "".join(char if char.isalnum() or char in "_-+." else "-" for char in label)


def save_result(folder: Path, label: str, result: Result, facts: dict[str, Any]) -> None:
    """Write the pictures, then the JSON: a task is finished when its JSON is there.

    Raises:
        DataError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_partials(folder)
        figures = {}
        for name, figure in result.figures.items():
            figures[name] = f"{file_name(label)}.{name}.png"
            write_atomically(folder / figures[name], partial(_write_png, figure))
        content = {
            "format": FORMAT,
            "task": label,
            **facts,
            "numbers": result.numbers,
            "tables": result.tables,
            "notes": result.notes,
            "figures": figures,
        }
        write_json(folder / f"{file_name(label)}.json", content)
    except OSError as error:
        raise DataError(f"the results cannot be written to {folder}: {error.strerror or error}") from error


def _write_png(figure: Figure, file: IO[bytes]) -> None:
    figure.savefig(file, format="png", dpi=130)


def read_result(path: Path) -> dict[str, Any] | None:
    """The content of one result file; None if it is not there, not whole, or of another format."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict) or content.get("format") != FORMAT or "numbers" not in content:
        return None
    numbers = content["numbers"]
    content["numbers"] = {name: math.nan if value is None else float(value) for name, value in numbers.items()}
    return content


def is_evaluated(run: str | Path) -> bool:
    """Whether anything was measured in this run folder."""
    return (Path(run) / FOLDER).is_dir()


def load_results(run: str | Path, checkpoint: str = "best") -> dict[str, dict[str, Any]]:
    """All results of a run folder: task -> ``numbers``, ``tables``, ``notes``, ``figures``, ``options`` and more."""
    folder = results_folder(Path(run), checkpoint)
    found = (read_result(path) for path in sorted(folder.glob("*.json")))
    return {str(content["task"]): content for content in found if content is not None}
