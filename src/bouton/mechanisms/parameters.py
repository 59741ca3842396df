"""Documented, validated hyper-parameters of mechanisms.

A mechanism declares a frozen dataclass derived from :class:`Params`; each field carries its documentation, unit and
valid range. The YAML files, the docs table, the error messages and search spaces are all read from there, so that
none of them can drift from the code.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from bouton.errors import ConfigError, suggest

_KEY = "bouton"


@dataclass(frozen=True)
class Spec:
    """What is known of one parameter: its kind, meaning, unit, range and the scale on which to search it."""

    kind: str  # "real" | "integer" | "choice" | "flag"
    doc: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    low_open: bool = False
    high_open: bool = False
    options: tuple[str, ...] = ()
    scale: str = "linear"  # "linear" | "log" | "logit"
    optional: bool = False

    def valid(self) -> str:
        """The valid values in words."""
        if self.kind == "flag":
            return "true or false"
        if self.kind == "choice":
            return " or ".join(self.options)
        noun = "an integer" if self.kind == "integer" else "a number"
        bounds = []
        if self.low is not None:
            bounds.append(f"{'>' if self.low_open else '>='} {self.low:g}")
        if self.high is not None:
            bounds.append(f"{'<' if self.high_open else '<='} {self.high:g}")
        text = noun + (f" {' and '.join(bounds)}" if bounds else "")
        return text + (" or null" if self.optional else "")

    def accept(self, value: Any) -> Any:
        """``value`` converted to the parameter's type; raises ValueError if it is not valid."""
        if value is None:
            if self.optional:
                return None
            raise ValueError
        if self.kind == "flag":
            if not isinstance(value, bool):
                raise ValueError
            return value
        if self.kind == "choice":
            if value not in self.options:
                raise ValueError
            return value
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError
        if self.kind == "integer" and int(value) != value:
            raise ValueError
        if self.low is not None and (value < self.low or (self.low_open and value == self.low)):
            raise ValueError
        if self.high is not None and (value > self.high or (self.high_open and value == self.high)):
            raise ValueError
        return int(value) if self.kind == "integer" else float(value)


def real(
    default: float | None,
    doc: str,
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    low_open: bool = False,
    high_open: bool = False,
    scale: str = "linear",
) -> Any:
    """A real-valued parameter. A default of None makes it optional."""
    spec = Spec("real", doc, unit, low, high, low_open, high_open, scale=scale, optional=default is None)
    return dataclasses.field(default=default, metadata={_KEY: spec})


def integer(
    default: int | None,
    doc: str,
    *,
    unit: str = "",
    low: int | None = None,
    high: int | None = None,
    scale: str = "linear",
) -> Any:
    """An integer parameter. A default of None makes it optional."""
    spec = Spec("integer", doc, unit, low, high, scale=scale, optional=default is None)
    return dataclasses.field(default=default, metadata={_KEY: spec})


def choice(default: str, options: Sequence[str], doc: str) -> Any:
    """A parameter that takes one of a few names."""
    return dataclasses.field(default=default, metadata={_KEY: Spec("choice", doc, options=tuple(options))})


def flag(default: bool, doc: str) -> Any:
    """A yes/no parameter."""
    return dataclasses.field(default=default, metadata={_KEY: Spec("flag", doc)})


@dataclass(frozen=True)
class Params:
    """Base of a mechanism's parameters. Validated on construction.

    Override :meth:`check` for conditions that tie several parameters together.

    Raises:
        ConfigError: an unknown name, a value out of range, or a failed :meth:`check`.
    """

    def __post_init__(self) -> None:
        for name, spec in self.specs().items():
            value = getattr(self, name)
            try:
                object.__setattr__(self, name, spec.accept(value))
            except (ValueError, TypeError):
                unit = f", in {spec.unit}" if spec.unit else ""
                raise ConfigError(f"{name} = {value!r} is not valid: {spec.doc}{unit} must be {spec.valid()}") from None
        self.check()

    def check(self) -> None:
        """Raise :class:`ConfigError` if the parameters contradict each other."""

    @classmethod
    def specs(cls) -> dict[str, Spec]:
        """Parameter name -> its :class:`Spec`, in order of declaration."""
        return {f.name: f.metadata[_KEY] for f in dataclasses.fields(cls)}

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Parameter name -> default value."""
        return {f.name: f.default for f in dataclasses.fields(cls)}

    @classmethod
    def from_config(cls, values: Mapping[str, Any], path: str) -> Self:
        """Build from a configuration node at ``path`` (for the messages), e.g. ``mechanism.presyn``."""
        for name in values:
            if name not in cls.specs():
                raise ConfigError(f"{path}.{name} is unknown: {suggest(str(name), cls.specs())}")
        try:
            return cls(**values)
        except ConfigError as error:
            raise ConfigError(f"{path}.{error}") from None
