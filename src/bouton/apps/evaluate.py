"""``bouton eval``: measure a trained run with evaluation tasks, and print what they found."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf
from rich.markup import escape
from rich.table import Table

from bouton.apps.options import option, parse, terminal
from bouton.errors import ConfigError, suggest
from bouton.evaluation import registry
from bouton.evaluation.runner import evaluate
from bouton.evaluation.store import results_folder
from bouton.runs import load

_FLAGS = {"yes": True, "true": True, "no": False, "false": False}


@dataclass
class Options:
    """The keys of the command. Options of a task are ``task.option=value``."""

    run: str = option("run folder")
    tasks: str = option("[task,task,...], or all: every task that applies to this run", "all")
    again: str = option("yes: measure again what has been measured", "no")
    checkpoint: str = option("best, last, or a checkpoint file", "best")
    precision: str = option("run: as the run's own validation; float32", "run")
    device: str = option("auto, cpu, cuda, cuda:1, ...", "auto")
    kernels: str = option("backend of the ops: auto, torch, rust or triton", "auto")
    data_path: str | None = option("where the run's text is now, if it has moved", None)
    cache_dir: str | None = option("where the token files are now, if they have moved", None)


def main(argv: list[str]) -> int:
    """Run the command; returns the exit code."""
    dotted = [word for word in argv if "." in word.partition("=")[0]]
    options = parse(
        Options,
        [word for word in argv if word not in dotted],
        usage="bouton eval run=FOLDER tasks=[perplexity,calibration] [task.option=value ...]",
    )
    if options is None:
        print_tasks()
        return 0
    if options.again not in _FLAGS:
        raise ConfigError(f"again = {options.again!r} is not valid: yes or no")
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("bouton.evaluation").setLevel(logging.INFO)
    run = load(options.run, options.checkpoint, options.device, options.kernels)
    evaluate(
        run,
        listed(options.tasks),
        task_options(dotted),
        again=_FLAGS[options.again],
        precision=options.precision,
        data_path=options.data_path,
        cache_dir=options.cache_dir,
        progress=True,
        report=print_result,
    )
    terminal().print(f"results: {results_folder(run.folder, run.checkpoint_name)}", markup=False, soft_wrap=True)
    return 0


def listed(text: str) -> list[str]:
    """``[a,b]`` or ``a,b`` as names."""
    return [name.strip() for name in text.strip().removeprefix("[").removesuffix("]").split(",") if name.strip()]


def task_options(words: Sequence[str]) -> dict[str, dict[str, Any]]:
    """``needle.lengths=[64,128]`` as ``{"needle": {"lengths": [64, 128]}}``; values are YAML."""
    found: dict[str, dict[str, Any]] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise ConfigError(f"'{word}' is not of the form task.option=value")
        task, _, name = key.partition(".")
        if task not in (known := registry.tasks()):
            raise ConfigError(f"task '{task}' is unknown: {suggest(task, known)}")
        try:
            value = OmegaConf.to_container(OmegaConf.create(f"value: {text}"))["value"]  # type: ignore[index, call-overload]
        except Exception:  # whatever YAML's parser finds
            raise ConfigError(f"{key} = {text!r} cannot be read: a number, a word, or a list [a,b]") from None
        if name in found.setdefault(task, {}):
            raise ConfigError(f"{key} is given twice: {found[task][name]} and {value}")
        found[task][name] = value
    return found


def print_tasks() -> None:
    """The tasks with their options, for ``--help``."""
    table = Table(box=None, padding=(0, 2), pad_edge=False, header_style="bold")
    for column in ("task", "option", "default", "meaning"):
        table.add_column(column)
    for name, cls in registry.tasks().items():
        table.add_row(f"{name}:..." if cls.argument_doc else name, "", "", escape(cls.summary), style="bold")
        for key, spec in cls.Options.specs().items():
            default = cls.Options.defaults()[key]
            shown = "" if default is None else str(list(default) if isinstance(default, tuple) else default)
            table.add_row("", f"{name}.{key}", escape(shown), escape(spec.doc))
    console = terminal()
    console.print()
    console.print(table)


def print_result(label: str, result: Mapping[str, Any], fresh: bool) -> None:
    """The numbers of one task: those that it calls its headline, with their intervals."""
    numbers: Mapping[str, float] = result["numbers"]
    table = Table(box=None, padding=(0, 2), pad_edge=False, show_header=False)
    for _ in range(3):
        table.add_column()
    for name in registry.headline(label, numbers):
        low, high = numbers.get(f"{name}_low", math.nan), numbers.get(f"{name}_high", math.nan)
        interval = "" if math.isnan(low) or math.isnan(high) else f"{shown(low)} to {shown(high)}"
        table.add_row(name, f"[bold]{shown(numbers[name])}[/]", interval)
    console = terminal()
    when = f"{result['seconds']:.1f} s" if fresh else "measured before; again=yes measures again"
    console.print(f"[bold]{escape(label)}[/]  [dim]{when}[/]")
    console.print(table)
    for note in result["notes"]:
        console.print(f"[dim]{escape(note)}[/]")
    console.print()


def shown(value: float) -> str:
    """A number for a person: whole numbers whole, others with four significant digits."""
    if math.isnan(value):
        return "-"
    if math.isinf(value):
        return str(value)
    if value == int(value) and abs(value) >= 1:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
