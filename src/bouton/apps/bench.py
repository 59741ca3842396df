"""``bouton bench``: check the executions of the ops against their definitions, time them against peers, draw ratios."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bouton.apps.options import option, parse, terminal
from bouton.errors import ConfigError, DataError, suggest
from bouton.files import write_json
from bouton.ops.benchmarks import SHAPES, Settings, cases, measure_all
from bouton.ops.benchmarks.case import PASSES
from bouton.ops.benchmarks.harness import Notify, Result
from bouton.ops.benchmarks.report import COLUMNS, baseline, document, notes, rows

DTYPES = ("float32", "bfloat16")


@dataclass
class Options:
    """The keys of the command."""

    op: str | None = option("the op to measure; none: all of them", None)
    device: str = option("cpu or cuda", "cpu")
    threads: int | None = option("CPU threads; none: all cores", None)
    rounds: int = option("times that each execution runs, in turn with the others", 15)
    shapes: str = option("issue: the sizes of the targets; sweep: over T; all; small: only shows that it runs", "issue")
    passes: str = option("forward, forward+backward, or all", "all")
    dtype: str = option("float32 or bfloat16", "float32")
    memory: str = option("measure peak memory: yes or no", "yes")
    json: str | None = option("file for all figures and the machine's description", None)
    plot: str | None = option("PNG of the ratios against T", None)


def main(argv: list[str]) -> int:
    """Run the command; returns the exit code, 1 if an execution is wrong."""
    options = parse(Options, argv, usage="bouton bench [OP] [key=value ...]", positional="op")
    if options is None:
        return 0
    settings = check(options)
    console = terminal()
    with _threads(options.threads or os.cpu_count() or 1), _progress() as notify:
        found = cases(options.op, settings.device, settings.shapes)
        results = measure_all(found, settings, notify)
        recorded = document(results, settings)
    show(console, results, recorded["machine"])
    if options.json is not None:
        write_json(_file("json", options.json), recorded)
        console.print(f"figures: {options.json}", markup=False)
    if options.plot is not None:
        from bouton.apps.bench_plot import draw

        lengths = draw(results, _file("plot", options.plot))
        console.print(f"plot: {options.plot}" if lengths else "plot: no case has a length T", markup=False)
    return int(any(result["wrong"] for result in results))


def check(options: Options) -> Settings:
    """The settings that the words describe.

    Raises:
        ConfigError: a value that is unknown, out of range, or not possible on this machine.
    """
    for key, known in (("shapes", SHAPES), ("passes", (*PASSES, "all")), ("dtype", DTYPES), ("memory", ("yes", "no"))):
        if (value := getattr(options, key)) not in known:
            raise ConfigError(f"{key} = '{value}' is not valid: {suggest(value, known)}")
    if options.device not in ("cpu", "cuda"):
        raise ConfigError(f"device = '{options.device}' is not valid: {suggest(options.device, ('cpu', 'cuda'))}")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device = cuda is not valid: this machine has no CUDA device")
    for key in ("rounds", "threads"):
        if (count := getattr(options, key)) is not None and count < 1:
            raise ConfigError(f"{key} = {count} is not valid: it must be at least 1")
    for key in ("json", "plot"):
        if (path := getattr(options, key)) is not None:
            _file(key, path)
    return Settings(
        device=options.device,
        dtype=getattr(torch, options.dtype),
        rounds=options.rounds,
        shapes=options.shapes,
        memory=options.memory == "yes",
        passes=PASSES if options.passes == "all" else (options.passes,),
    )


def show(console: Console, results: Sequence[Result], machine: dict[str, Any]) -> None:
    """A table per case, and the machine."""
    for result in results:
        against = baseline(result)
        title = f"{result['op']}  {result['case']}  {result['dtype']}" + (f"  ratios to {against}" if against else "")
        grid = Table(title=escape(title), title_justify="left", header_style="bold")
        for index, column in enumerate(COLUMNS):
            grid.add_column(column, justify="left" if index < 2 else "right", no_wrap=True)
        before = None
        for row in rows(result):
            if before not in (None, row[0]):
                grid.add_section()
            before = row[0]
            grid.add_row(*map(escape, row))
        if grid.row_count:
            console.print(grid)
        for note in notes(result):
            console.print(("" if grid.row_count else f"{title}: ") + note, style="dim", markup=False)
    kernels = f"bouton-kernels {machine['bouton_kernels']} ({machine['instruction_set']})"
    console.print(
        f"{machine.get('gpu') or machine['cpu']}, {machine['threads']} threads of {machine['cores']} cores, "
        f"torch {machine['torch']}, {kernels if machine['bouton_kernels'] else 'no Rust kernels'}; "
        f"limit {machine['peak_flops'] / 1e9:.0f} GFLOP/s by {machine['peak_source']}, "
        f"{machine['copy_bytes_per_second'] / 1e9:.1f} GB/s by copying",
        markup=False,
    )


def _file(key: str, name: str) -> Path:
    path = Path(name).expanduser()
    if not path.parent.is_dir():
        raise DataError(f"{key} = {path} cannot be written: there is no folder {path.parent}")
    return path


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _progress() -> Iterator[Notify]:
    """A bar on stderr, or nothing where stderr is no terminal; Ctrl-C leaves one line."""
    console = Console(stderr=True)
    columns = (BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    done_now, total_now = 0, 0
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting", total=None)

        def notify(done: int, total: int, text: str) -> None:
            nonlocal done_now, total_now
            done_now, total_now = done, total
            bar.update(task, completed=done, total=total, description=text)

        try:
            yield notify
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"interrupted after {done_now} of {total_now} cases: nothing was written") from None
