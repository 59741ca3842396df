"""``bouton kernels``: op x backend, available here or why not, and which one ``auto`` takes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from rich.markup import escape
from rich.table import Table

from bouton.apps.options import option, parse, terminal
from bouton.mechanisms import registry
from bouton.ops import backends


@dataclass
class Options:
    """The keys of the command."""

    device: str | None = option("cpu, cuda or mps; none: every device of this machine", None)


def main(argv: list[str]) -> int:
    """Run the command; returns the exit code."""
    options = parse(Options, argv, usage="bouton kernels [device=cpu]")
    if options is None:
        return 0
    _register_all()
    console = terminal()
    for device in devices() if options.device is None else [options.device]:
        console.print(table(device))
    console.print("kernels=NAME takes a backend for all ops, kernels.OP=NAME for one; all backends compute the same")
    return 0


def devices() -> list[str]:
    """The device types of this machine."""
    found = ["cpu"]
    if torch.cuda.is_available():
        found.append("cuda")
    if torch.backends.mps.is_available():
        found.append("mps")
    return found


def table(device: str) -> Table:
    """One row per op: each backend with a tick or the reason against it, and the choice of ``auto``."""
    grid = Table(title=f"kernels on {device}", title_justify="left", header_style="bold", show_lines=True)
    grid.add_column("op", style="bold", no_wrap=True)
    for name in backends.BACKENDS:
        grid.add_column(name, overflow="fold")
    grid.add_column("auto takes", style="bold", no_wrap=True)
    for op in backends.ops():
        reasons = {**backends.passed_over(op, device), **backends.refusals(op, device)}
        cells = [f"[dim]{escape(reasons[name])}[/]" if name in reasons else "available" for name in backends.BACKENDS]
        grid.add_row(op, *cells, automatic(op, device))
    return grid


def automatic(op: str, device: str) -> str:
    """The backend that ``auto`` takes on this machine, if the call itself has nothing against it."""
    reasons = {**backends.passed_over(op, device), **backends.refusals(op, device)}
    order = backends.PREFERENCE.get(device, ("torch",))
    return next((name for name in order if name not in reasons), "none")


def _register_all() -> None:
    """Import every op, also those of mechanisms from other packages."""
    backends.register_all()
    registry.mechanisms()
