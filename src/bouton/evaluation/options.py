"""Options of tasks: those of mechanisms' parameters, and lists."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bouton.mechanisms.parameters import Params, Spec, choice, flag, integer, real

__all__ = ["Params", "choice", "flag", "integer", "integers", "real", "reals", "text"]


@dataclass(frozen=True)
class ListSpec(Spec):
    """A list whose entries are each what the spec says."""

    def valid(self) -> str:
        entry = dataclasses.replace(self, optional=False)
        return f"a list [a,b,...], each {Spec.valid(entry)}" + (" or null" if self.optional else "")

    def accept(self, value: Any) -> Any:
        if value is None and self.optional:
            return None
        values = value if isinstance(value, list | tuple) else [value]
        if not values:
            raise ValueError
        return tuple(Spec.accept(dataclasses.replace(self, optional=False), entry) for entry in values)


def integers(default: Sequence[int] | None, doc: str, *, unit: str = "", low: int | None = None) -> Any:
    """An option that takes several integers (or one)."""
    spec = ListSpec("integer", doc, unit, low, optional=default is None)
    return dataclasses.field(default=default, metadata={"bouton": spec})


def reals(default: Sequence[float], doc: str, *, low: float = -math.inf, high: float = math.inf) -> Any:
    """An option that takes several numbers (or one)."""
    return dataclasses.field(default=default, metadata={"bouton": ListSpec("real", doc, "", low, high)})


@dataclass(frozen=True)
class TextSpec(Spec):
    """A string."""

    def valid(self) -> str:
        return "a text or null"

    def accept(self, value: Any) -> Any:
        if value is not None and not isinstance(value, str):
            raise ValueError
        return value


def text(doc: str) -> Any:
    """An optional option that takes a string, for instance a path."""
    return dataclasses.field(default=None, metadata={"bouton": TextSpec("text", doc, optional=True)})
