"""What the columns of a run table measure: which way is better, in what unit, and which difference is worth a claim."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bouton.errors import ConfigError, suggest


@dataclass(frozen=True)
class Metric:
    """One column of :func:`bouton.evidence.load`.

    Attributes:
        column: its name, ``final_...`` or ``best_...``.
        title: for headings.
        unit: for axes.
        lower_is_better: direction.
        interest: smallest effect of interest, in ``unit``: a difference below it would change nobody's decision.
        curve: the column of ``metrics.csv`` whose course it is the end of, if there is one.
    """

    column: str
    title: str
    unit: str
    lower_is_better: bool
    interest: float
    curve: str | None

    @property
    def sign(self) -> float:
        """+1 where a positive difference is a gain, -1 where a negative one is."""
        return -1.0 if self.lower_is_better else 1.0


# column without its first word -> title, unit, lower is better, smallest effect of interest
_KNOWN: dict[str, tuple[str, str, bool, float]] = {
    "val_loss": ("held-out loss", "nats per token", True, 0.01),  # 0.01 nats: one per cent of the perplexity
    "val_bits_per_byte": ("held-out bits per byte", "bits per byte", True, 0.005),
    "val_perplexity": ("held-out perplexity", "perplexity", True, 0.1),
    "val_accuracy": ("held-out accuracy", "share of tokens", False, 0.01),
    "val_error": ("held-out error", "share of examples", True, 0.005),
    "val_f1": ("held-out F1 of entities", "F1", False, 0.01),
    "train_loss": ("training loss of the last step", "nats per token", True, 0.01),
}
DEFAULT = "final_val_loss"
_OF_DOMAINS = "final_val_error"  # what runs of a domain of the graph have in its place


def metric(column: str, columns: Iterable[str], interest: float | None = None) -> Metric:
    """The metric in ``column``.

    Args:
        column: as in the table, e.g. ``final_val_loss``; without its first word the final value is meant.
        columns: what the table has.
        interest: smallest effect of interest in the metric's unit; None for the metric's own.

    Raises:
        ConfigError: no such column, a column that is not a metric, or an effect that is not positive.
    """
    known = [name for name in columns if name.partition("_")[2] in _KNOWN and name.startswith(("final_", "best_"))]
    if column == DEFAULT and column not in known and _OF_DOMAINS in known:
        column = _OF_DOMAINS
    if column not in known and f"final_{column}" in known:
        column = f"final_{column}"
    if column not in known:
        whole = column if column.startswith(("final_", "best_")) else f"final_{column}"
        raise ConfigError(f"metric = {column} is unknown: {suggest(whole, known)}")
    which, _, short = column.partition("_")
    title, unit, lower, smallest = _KNOWN[short]
    if interest is not None and not interest > 0:
        raise ConfigError(f"interest = {interest} is not valid: a number > 0, in {unit}")
    best = "best " if which == "best" else ""
    course = f"val/{short.removeprefix('val_')}" if short.startswith("val_") else None
    return Metric(column, best + title, unit, lower, smallest if interest is None else interest, course)
