"""Figures as rows of text and as one JSON document."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from bouton.ops.benchmarks.harness import Result, Settings
from bouton.ops.benchmarks.machine import describe, limit

COLUMNS = ("pass", "execution", "wall", "ratio", "quartiles", "cpu ratio", "peak memory", "rate", "of limit", "error")


def document(results: Sequence[Result], settings: Settings) -> dict[str, Any]:
    """Everything that was measured and on what, in plain types."""
    peak = limit(settings.device, settings.dtype)
    machine = {
        **describe(settings.device),
        "peak_flops": peak.flops,
        "peak_source": peak.source,
        "copy_bytes_per_second": peak.bandwidth,
    }
    return {
        "machine": machine,
        "device": settings.device,
        "dtype": str(settings.dtype).removeprefix("torch."),
        "shapes": settings.shapes,
        "rounds": settings.rounds,
        "results": _finite(list(results)),
    }


def baseline(result: Result) -> str | None:
    """The peer that ratios are quoted against: the first that was timed."""
    timed = {name for figures in result["passes"].values() for name in figures}
    return next((name for name in result["peers"] if name in timed), None)


def rows(result: Result) -> list[tuple[str, ...]]:
    """One row of :data:`COLUMNS` for each pass and execution; ratios are against :func:`baseline`."""
    against = baseline(result)
    return [
        _row(step, name, figure, against, result["errors"].get(name))
        for step, figures in result["passes"].items()
        for name, figure in figures.items()
    ]


def notes(result: Result) -> Iterable[str]:
    """What was not timed, and why; the wrong ones first. Of a case that is checked alone, what is right as well."""
    for name, errors in result["wrong"].items():
        listed = ", ".join(what if error != error else f"{what} {error:.1e}" for what, error in errors.items())
        yield f"{name} is WRONG, not timed: relative error of {listed}"
    for name, errors in result["errors"].items() if not result["passes"] else ():
        if name not in result["wrong"]:
            yield f"{name} is right: largest relative error {max(errors.values()):.0e}"
    for name, reason in result["skipped"].items():
        yield f"{name}: not run: {reason}"


def table(results: Iterable[Result]) -> str:
    """All results as aligned text."""
    lines = []
    for result in results:
        head = f"{result['op']}  {result['case']}  {result['dtype']}"
        lines.append(f"{head}  (ratios to {baseline(result) or 'nothing'})" if result["passes"] else head)
        cells = [COLUMNS, *rows(result)] if result["passes"] else []
        widths = [max(len(row[i]) for row in cells) for i in range(len(COLUMNS))] if cells else []
        lines += ["  " + "  ".join(f"{x:>{w}}" for x, w in zip(row, widths, strict=True)) for row in cells]
        lines += [f"  {note}" for note in notes(result)]
    return "\n".join(lines)


def _row(
    step: str, name: str, figure: dict[str, Any], against: str | None, errors: dict[str, float] | None
) -> tuple[str, ...]:
    ratios = figure["ratios"].get(against, {})
    wall, cpu = ratios.get("wall"), ratios.get("cpu")
    own = "1" if name == against else ""
    return (
        step,
        name,
        f"{figure['wall_ms']:.3f} ms",
        f"{wall['ratio']:.2f}" if wall else own,
        "{:.2f} to {:.2f}".format(*wall["quartiles"]) if wall else "",
        f"{cpu['ratio']:.2f}" if cpu else "",
        "" if figure["peak_bytes"] is None else f"{figure['peak_bytes'] / 2**20:.1f} MiB",
        _rate(figure),
        "" if figure["share_of_limit"] is None else f"{100 * figure['share_of_limit']:.0f} %",
        "" if errors is None else f"{max(errors.values()):.0e}",
    )


def _rate(figure: dict[str, Any]) -> str:
    if figure["flops_per_second"]:
        return f"{figure['flops_per_second'] / 1e9:.1f} GFLOP/s"
    return f"{figure['bytes_per_second'] / 1e9:.1f} GB/s" if figure["bytes_per_second"] else ""


def _finite(value: Any) -> Any:
    """The same with None for what is not a finite number: JSON has no NaN."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(x) for key, x in value.items()}
    return [_finite(x) for x in value] if isinstance(value, list) else value
