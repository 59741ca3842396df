"""What a domain is: it learns on a graph, and says how well, beside what is trivial."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track

from bouton.mechanisms.parameters import Params, Spec
from bouton.substrate import Graph
from bouton.training.csv_logger import Table

X = TypeVar("X")
Row = dict[str, str | float]


class PlaceSpec(Spec):
    """What is known of a parameter that names a file or a folder, or nothing."""

    def valid(self) -> str:
        return "a path or null"

    def accept(self, value: Any) -> Any:
        if value is not None and not isinstance(value, str):
            raise ValueError
        return value


def place(doc: str) -> Any:
    """A parameter that names a file or a folder; null by default."""
    return field(default=None, metadata={"bouton": PlaceSpec("place", doc, optional=True)})


@dataclass(frozen=True)
class Outcome:
    """What came out.

    Attributes:
        objective: what a sweep lowers; from held-out data that are not the test set, where there are some.
        table: rows with the key ``method``, the graph's first, then the trivial baselines, all with the same columns.
        graph: what has learned.
        facts: single numbers beside the table.
        figures: name of a file -> picture.
    """

    objective: float
    table: list[Row]
    graph: Graph
    facts: dict[str, float | int | str] = field(default_factory=dict)
    figures: dict[str, Figure] = field(default_factory=dict)


class Recorder:
    """Takes down how learning goes: ``metrics.csv`` in the run folder, and progress on a terminal.

    Args:
        folder: the run folder; None: nothing is kept.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.rows: list[dict[str, float]] = []
        self._table = None if folder is None else Table(folder / "metrics.csv", None)

    def log(self, step: int, **numbers: float) -> None:
        """One row; steps must grow."""
        self.rows.append({"step": step, **numbers})
        if self._table is not None:
            self._table.add(step, numbers)
            self._table.flush()

    def track(self, items: Iterable[X], what: str) -> Iterator[X]:
        """``items`` with a progress bar, if there is a terminal."""
        console = Console(stderr=True)
        return iter(track(items, description=what, console=console, transient=True, disable=not console.is_terminal))


class Domain(ABC):
    """A task. Subclasses state ``name`` and their ``Settings``, the fields of ``conf/domain/<name>.yaml``.

    Args:
        settings: of that class.
        seed: of all that is random.
        threads: of the engine, 0: one per core; they change no result.
    """

    name: ClassVar[str]
    Settings: ClassVar[type[Params]]

    def __init__(self, settings: Any, seed: int = 0, threads: int = 0) -> None:
        self.settings = settings
        self.seed = seed
        self.threads = threads

    @abstractmethod
    def run(self, recorder: Recorder) -> Outcome:
        """Learn, and compare.

        Raises:
            DataError: data that are missing or not what they should be.
        """
