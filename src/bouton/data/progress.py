"""A progress bar on the terminal, or one line at the end where there is none."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn


@contextmanager
def progress(what: str, total_bytes: int | None) -> Iterator[Callable[[int], None]]:
    """Yields a function to be called with the number of bytes done since the last call."""
    console = Console(stderr=True, soft_wrap=True)
    begin, done = time.perf_counter(), 0
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
               TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total_bytes)

        def advance(num_bytes: int) -> None:
            nonlocal done
            done += num_bytes
            bar.advance(task, num_bytes)

        yield advance
    console.print(f"{what}: {done / 1e6:.1f} MB in {time.perf_counter() - begin:.1f} s")
