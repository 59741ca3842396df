"""One tuned parameter: how a point of the unit interval becomes a value, and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bouton.errors import ConfigError, suggest

SCALES = ("linear", "log", "logit")
KINDS = ("real", "integer", "categorical")
_FEW = 2  # options that one coordinate can hold without putting a third one between two others


@dataclass(frozen=True)
class Axis:
    """A real, integer or categorical parameter.

    The search sees ``width`` coordinates in [0, 1]. A categorical axis with more than two options has one for each of
    them, of which the largest counts: so no option lies between two others.

    Args:
        key: path in the configuration, e.g. ``mechanism.presyn.tau_c``.
        kind: ``real``, ``integer`` or ``categorical``.
        low: smallest value of a number.
        high: largest value of a number.
        scale: ``linear``, ``log`` or ``logit`` for numbers.
        options: of a categorical axis.
        default: where the search begins; None: the middle, or the first option.
        group: the phase that tunes it, where it is not among the most influential ones.

    Raises:
        ConfigError: the range is empty or does not fit the scale.
    """

    key: str
    kind: str = "real"
    low: float = 0.0
    high: float = 1.0
    scale: str = "linear"
    options: tuple[Any, ...] = ()
    default: Any = None
    group: str = "other"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"the kind '{self.kind}' of {self.key} is unknown: {suggest(self.kind, KINDS)}")
        if self.kind == "categorical":
            if len(self.options) < 2:
                raise ConfigError(f"{self.key} has {len(self.options)} option(s) to choose from: it needs two or more")
            return
        if self.scale not in SCALES:
            raise ConfigError(f"the scale '{self.scale}' of {self.key} is unknown: {suggest(self.scale, SCALES)}")
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ConfigError(f"the range of {self.key}, {self.low:g} to {self.high:g}, is empty: low < high is needed")
        if self.scale == "log" and self.low <= 0:
            raise ConfigError(f"the range of {self.key} begins at {self.low:g}: a log scale needs low > 0")
        if self.scale == "logit" and not 0 < self.low < self.high < 1:
            raise ConfigError(f"the range of {self.key}, {self.low:g} to {self.high:g}: a logit scale needs 0 < it < 1")
        if self.kind == "integer" and self.scale == "logit":
            raise ConfigError(f"{self.key} is an integer: its scale is linear or log")

    @property
    def width(self) -> int:
        """Number of coordinates."""
        return len(self.options) if self.kind == "categorical" and len(self.options) > _FEW else 1

    @property
    def start(self) -> Any:
        """The default within the range."""
        if self.kind == "categorical":
            return self.default if self.default in self.options else self.options[0]
        if self.default is None:
            return self.decode([0.5])
        return self._clip(float(self.default))

    def decode(self, point: Sequence[float]) -> Any:
        """``width`` coordinates in [0, 1] -> a value."""
        if self.kind == "categorical":
            if self.width == 1:
                return self.options[int(point[0] >= 0.5)]
            return self.options[max(range(self.width), key=lambda i: point[i])]
        low, high = self._ends()
        return self._clip(self._unbend(low + (high - low) * min(max(float(point[0]), 0.0), 1.0)))

    def encode(self, value: Any) -> list[float]:
        """A value -> the coordinates in its middle."""
        if self.kind == "categorical":
            index = self.options.index(value)
            if self.width == 1:
                return [0.25 + 0.5 * index]
            return [0.75 if i == index else 0.25 for i in range(self.width)]
        low, high = self._ends()
        return [min(max((self._bend(float(value)) - low) / (high - low), 0.0), 1.0)]

    def from_unit(self, u: float) -> Any:
        """One number in [0, 1] -> a value, also for categorical axes: a screen varies one factor per parameter."""
        if self.kind == "categorical":
            return self.options[min(int(u * len(self.options)), len(self.options) - 1)]
        return self.decode([u])

    @property
    def smallest_step(self) -> float:
        """Below this standard deviation a coordinate would draw one value for ever; 0 for real numbers."""
        if self.kind == "categorical":
            return 0.1
        if self.kind == "integer":
            return 0.2 / (self.high - self.low + 1)
        return 0.0

    def _ends(self) -> tuple[float, float]:
        # Half a step beyond both ends, so that the first and the last integer get as much room as the others.
        half = 0.5 if self.kind == "integer" else 0.0
        return self._bend(self.low - half), self._bend(self.high + half)

    def _bend(self, value: float) -> float:
        if self.scale == "log":
            return math.log(value)
        return math.log(value / (1 - value)) if self.scale == "logit" else value

    def _unbend(self, value: float) -> float:
        if self.scale == "log":
            return math.exp(value)
        return 1 / (1 + math.exp(-value)) if self.scale == "logit" else value

    def _clip(self, value: float) -> Any:
        clipped = min(max(value, self.low), self.high)
        return round(clipped) if self.kind == "integer" else clipped
