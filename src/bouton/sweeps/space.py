"""A search space: the tuned parameters of a configuration, and what a point of the unit cube means for them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bouton.errors import ConfigError
from bouton.sweeps.axes import Axis

Values = dict[str, Any]  # configuration path -> value
_PLAIN_WORD = re.compile(r"[A-Za-z_][\w+-]*")
_OTHER_TYPES = {"null", "true", "false", "nan", "inf"}


def _anything(values: Mapping[str, Any]) -> str | None:
    return None


@dataclass(frozen=True)
class Space:
    """Axes side by side.

    Args:
        axes: the tuned parameters.
        refusal: why a combination of values cannot be tried, None if it can.
    """

    axes: tuple[Axis, ...]
    refusal: Callable[[Mapping[str, Any]], str | None] = field(default=_anything, compare=False)

    @property
    def keys(self) -> list[str]:
        """The configuration paths."""
        return [axis.key for axis in self.axes]

    @property
    def dimension(self) -> int:
        """Number of coordinates of a point."""
        return sum(axis.width for axis in self.axes)

    @property
    def start(self) -> Values:
        """Every parameter at its default."""
        return {axis.key: axis.start for axis in self.axes}

    @property
    def smallest_steps(self) -> list[float]:
        """Per coordinate, see :attr:`Axis.smallest_step`."""
        return [axis.smallest_step for axis in self.axes for _ in range(axis.width)]

    def decode(self, point: Sequence[float]) -> Values:
        """(dimension,) in [0, 1] -> values."""
        values, at = {}, 0
        for axis in self.axes:
            values[axis.key] = axis.decode(point[at : at + axis.width])
            at += axis.width
        return values

    def encode(self, values: Mapping[str, Any]) -> list[float]:
        """Values -> (dimension,)."""
        return [u for axis in self.axes for u in axis.encode(values[axis.key])]

    def from_unit(self, point: Sequence[float]) -> Values:
        """(number of axes,) in [0, 1] -> values."""
        return {axis.key: axis.from_unit(float(u)) for axis, u in zip(self.axes, point, strict=True)}

    def only(self, keys: Iterable[str]) -> Space:
        """The axes of ``keys``."""
        wanted = set(keys)
        return Space(tuple(axis for axis in self.axes if axis.key in wanted), self.refusal)

    def groups(self) -> dict[str, list[str]]:
        """Group -> its keys, in the order of the axes."""
        found: dict[str, list[str]] = {}
        for axis in self.axes:
            found.setdefault(axis.group, []).append(axis.key)
        return found

    def describe(self) -> list[dict[str, Any]]:
        """The axes in plain types, for the journal."""
        return [
            {
                "key": axis.key,
                "kind": axis.kind,
                **(
                    {"options": list(axis.options)}
                    if axis.kind == "categorical"
                    else {"low": axis.low, "high": axis.high, "scale": axis.scale}
                ),
                "default": axis.start,
                "group": axis.group,
            }
            for axis in self.axes
        ]


def word(key: str, value: Any) -> str:
    """``key=value`` as Hydra reads it on a command line."""
    if value is None:
        text = "null"
    elif isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, str) and (not _PLAIN_WORD.fullmatch(value) or value.lower() in _OTHER_TYPES):
        escaped = value.replace("\\", "\\\\").replace("'", "\\'") if "'" in value else value
        text = f"'{escaped}'"
    else:
        text = repr(value) if isinstance(value, float) else str(value)
    return f"{key}={text}"


def words(values: Mapping[str, Any]) -> list[str]:
    """:func:`word` for each."""
    return [word(key, value) for key, value in values.items()]


def require_axes(space: Space, advice: str) -> None:
    """Refuse an empty space."""
    if not space.axes:
        raise ConfigError(f"there is nothing to tune: {advice}")
