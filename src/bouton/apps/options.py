"""Options of a command as ``key=value`` words: a dataclass says which there are, of which type, and what they mean."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Sequence
from typing import Any, TypeVar, cast

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bouton.errors import ConfigError, suggest

T = TypeVar("T")

_REQUIRED = object()


def option(doc: str, default: Any = _REQUIRED) -> Any:
    """A field of an options dataclass: what it means, and its default (none: it must be given).

    A ``tuple[X, ...]`` takes every occurrence of its key.
    """
    metadata = {"doc": doc}
    if default is _REQUIRED:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def parse(cls: type[T], words: Sequence[str], *, usage: str, positional: str | None = None) -> T | None:
    """Read ``key=value`` words into an instance of the dataclass ``cls``; ``-h`` or ``--help`` prints help, gives None.

    Args:
        positional: the field that a first word without ``=`` stands for.

    Raises:
        ConfigError: an unknown key, a value of the wrong type, a key given twice, or a required one missing.
    """
    if any(word in ("-h", "--help") for word in words):
        print_help(cls, usage)
        return None
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cast(Any, cls))}
    values: dict[str, Any] = {}
    for index, word in enumerate(words):
        key, equals, text = word.partition("=")
        if not equals:
            if positional is None or index > 0:
                raise ConfigError(f"'{word}' is not of the form key=value; keys: {', '.join(fields)}")
            key, text = positional, word
        if key not in fields:
            raise ConfigError(f"option '{key}' is unknown: {suggest(key, fields)}")
        kind = _kind(hints[key])
        value = _convert(key, text, kind)
        if typing.get_origin(hints[key]) is tuple:
            values[key] = (*values.get(key, ()), value)
        elif key in values:
            raise ConfigError(f"{key} is given twice: {values[key]} and {text}")
        else:
            values[key] = value
    for name, field in fields.items():
        if name not in values and not _has_default(field):
            raise ConfigError(f"{name}=... is missing: {field.metadata['doc']}")
    return cls(**values)


def print_help(cls: type[Any], usage: str) -> None:
    """Print the usage line and a table of all keys with their defaults."""
    table = Table(box=None, padding=(0, 2), pad_edge=False, header_style="bold")
    for column in ("key", "default", "meaning"):
        table.add_column(column)
    for field in dataclasses.fields(cls):
        default = "(required)" if not _has_default(field) else _shown(field)
        table.add_row(field.name, escape(default), escape(field.metadata["doc"]))
    console = terminal()
    console.print(f"usage: {usage}", markup=False)
    console.print()
    console.print(table)


def terminal() -> Console:
    """The console of stdout; wide enough for tables where the output is piped."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=160)


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING


def _shown(field: dataclasses.Field[Any]) -> str:
    if field.default in (None, ()):
        return ""
    return f"{field.default:g}" if isinstance(field.default, float) else str(field.default)


def _kind(hint: Any) -> type[Any]:
    """The type of one value: ``tuple[X, ...]`` and ``X | None`` take X."""
    if typing.get_origin(hint) in (tuple, types.UnionType, typing.Union):
        return cast("type[Any]", next(part for part in typing.get_args(hint) if part is not type(None)))
    return cast("type[Any]", hint)


def _convert(key: str, text: str, kind: type[Any]) -> Any:
    if kind is str:
        return text
    try:
        return kind(text)
    except ValueError:
        noun = {int: "an integer", float: "a number"}[kind]
        raise ConfigError(f"{key} = {text!r} is not valid: it must be {noun}") from None
