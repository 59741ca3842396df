"""What a task is, and what it returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from bouton.evaluation.options import Params

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from bouton.evaluation.intervals import Estimate
    from bouton.evaluation.subject import Subject

Row = Mapping[str, Any]


@dataclass
class Result:
    """What one task found out about one run.

    Attributes:
        numbers: name -> value, flat. An estimate ``x`` has ``x_se``, ``x_low`` and ``x_high`` beside it.
        tables: name -> rows, for what has more than one dimension.
        notes: sentences about what could not be measured, or how it has to be read.
        figures: name -> picture.
    """

    numbers: dict[str, float] = field(default_factory=dict)
    tables: dict[str, list[Row]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    figures: dict[str, Figure] = field(default_factory=dict)

    def put(self, name: str, estimate: Estimate) -> None:
        """Add an estimate with its standard error and interval."""
        self.numbers.update(spread(name, estimate))


def spread(name: str, estimate: Estimate) -> dict[str, float]:
    """An estimate as four flat numbers."""
    return {
        name: estimate.value,
        f"{name}_se": estimate.se,
        f"{name}_low": estimate.low,
        f"{name}_high": estimate.high,
    }


class Task:
    """Base of all tasks. Subclass it in a file under ``tasks/``, declare the class variables, ``@register`` it.

    Attributes:
        argument: what followed the colon in ``tasks=[name:argument]``, for tasks that take one.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str] = ""  # the paper, where there is one
    Options: ClassVar[type[Params]] = Params
    headline: ClassVar[Sequence[str]] = ()  # the numbers that the command prints; () for all
    argument_doc: ClassVar[str] = ""  # what the argument means; "" for a task without one
    machine_bound: ClassVar[bool] = False  # whether the numbers are about the machine as much as about the model

    def __init__(self, argument: str = "") -> None:
        self.argument = argument

    def check(self, subject: Subject) -> None:
        """Refuse a run that has nothing to measure, before anything is measured.

        Raises:
            EvaluationError: in one line.
        """

    def measure(self, subject: Subject, options: Any) -> Result:
        """Measure; parameters, buffers and random generators must be left as they are.

        Raises:
            EvaluationError: this run cannot be measured with these options.
        """
        raise NotImplementedError(f"{type(self).__qualname__} does not implement measure(subject, options)")
