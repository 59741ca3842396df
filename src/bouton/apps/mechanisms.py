"""``bouton mechanisms``: what is in the registry, as tables."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from bouton.apps.options import option, parse, terminal
from bouton.mechanisms.base import Mechanism
from bouton.mechanisms.parameters import Spec
from bouton.mechanisms.registry import get, mechanisms
from bouton.ops import backends


@dataclass
class Options:
    """The keys of the command."""

    name: str | None = option("one mechanism in full, with its parameters; none: all in short", None)


def main(argv: list[str]) -> int:
    """Run the command; returns the exit code."""
    options = parse(Options, argv, usage="bouton mechanisms [NAME]", positional="name")
    if options is None:
        return 0
    console = terminal()
    if options.name is None:
        console.print(overview(mechanisms()))
        console.print("bouton mechanisms NAME shows the parameters of one; mechanism=a+b trains with several")
    else:
        console.print(details(get(options.name)))
    return 0


def overview(registry: dict[str, type[Mechanism]]) -> Table:
    """One row per mechanism."""
    table = Table(header_style="bold", show_lines=True)
    table.add_column("mechanism", style="bold", no_wrap=True)
    for column in ("what it does", "sockets", "state", "parameters", "backends", "source"):
        table.add_column(column, overflow="fold")
    for name, cls in registry.items():
        table.add_row(
            name,
            escape(cls.summary),
            ", ".join(cls.sockets),
            escape(cls.state),
            ", ".join(cls.Params.specs()),
            "\n".join(f"{op}: {', '.join(backends.backends_of(op))}" for op in cls.ops) or "torch",
            escape(cls.source),
        )
    return table


def details(cls: type[Mechanism]) -> Panel:
    """Everything that a mechanism says of itself."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column()
    for label, value in _facts(cls):
        facts.add_row(label, escape(value))
    parts: list[Any] = [facts, Text(), _parameters(cls)]
    if cls.vital_names:
        parts += [Text(), _pairs("vital", "what it measures", cls.vital_names.items())]
    if cls.skips:
        parts += [Text(), _pairs("skipped clause of the contract suite", "why", cls.skips.items())]
    else:
        parts += [Text(), Text("skips no clause of the contract suite", style="dim")]
    return Panel(Group(*parts), title=f"[bold]{cls.name}[/]", title_align="left")


def _facts(cls: type[Mechanism]) -> Iterable[tuple[str, str]]:
    yield "what it does", cls.summary
    yield "source", cls.source
    yield "sockets", ", ".join(cls.sockets)
    yield "sequence state", cls.state
    for op in cls.ops:
        yield f"op {op}", ", ".join(backends.backends_of(op)) + "  (bouton kernels: which of them run here)"
    for label, names in (("refines", cls.refines), ("publishes", cls.publishes), ("reads", cls.reads)):
        if names:
            yield label, ", ".join(names)
    if cls.neutral is not None:
        values = ", ".join(f"{name}={_value(value)}" for name, value in cls.neutral.items())
        yield "equals the plain body at", values or "its defaults"


def _parameters(cls: type[Mechanism]) -> Table:
    table = Table(header_style="bold", title_justify="left")
    for column in ("parameter", "default", "unit", "range", "meaning"):
        table.add_column(column, overflow="fold")
    defaults = cls.Params.defaults()
    for name, spec in cls.Params.specs().items():
        table.add_row(f"mechanism.{cls.name}.{name}", _value(defaults[name]), spec.unit, _range(spec), escape(spec.doc))
    return table


def _range(spec: Spec) -> str:
    text = spec.valid().removeprefix("a number ").removeprefix("a number")
    return escape(text or "any number")


def _pairs(left: str, right: str, rows: Iterable[tuple[str, str]]) -> Table:
    table = Table(header_style="bold")
    table.add_column(left, no_wrap=True)
    table.add_column(right, overflow="fold")
    for name, text in rows:
        table.add_row(name, escape(text))
    return table


def _value(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
