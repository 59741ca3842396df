"""What the Triton kernels of an op become on a GPU that is not there, as rows of figures and as a table.

An op that has kernels says in ``<op>/triton_cost.py`` in which variants it is to be compiled: ``TARGETS``, those of the
sizes that it is made for, and ``OTHERS``; and with ``launched(variant)`` what a variant launches.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from bouton.ops.triton_compile import Launch, compiled

OPS = ("fatigue_attention", "lif", "oscillate")
COLUMNS = ("all", "special", "FFMA", "FADD", "FMUL", "SHFL", "MMA", "LDS", "STS")


class Launched(NamedTuple):
    """A kernel of a variant under its name, and the elements of one way through its loop, if that is to be counted."""

    name: str
    launch: Launch
    tile: tuple[int, ...] = ()


def costs(op: str, targets_alone: bool = False, capability: int = 90) -> Iterator[dict[str, Any]]:
    """One row per kernel and variant; instructions "per element" are those of a tile that needs no mask."""
    module = importlib.import_module(f"bouton.ops.{op}.triton_cost")
    for variant in module.TARGETS if targets_alone else (*module.TARGETS, *module.OTHERS):
        for name, launch, tile in module.launched(variant):
            code = compiled(launch, capability)
            row: dict[str, Any] = {"op": op, "variant": str(variant), "kernel": name, **code.as_dict()}
            if tile and code.loop_instructions:
                row |= {"tile": list(tile), "per element": code.per_element(math.prod(tile))}
            yield row


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as text, one line each."""
    lines = [("op", "variant", "kernel", "tile", "warps", "registers", "spilled", "shared", *COLUMNS)]
    for row in rows:
        each = row.get("per element")
        counts = (row["threads"] // 32, row["registers"], row["spilled"], row["shared"])
        shares = (f"{each.get(column, 0.0):.1f}" if each else "" for column in COLUMNS)
        tile = "x".join(map(str, row.get("tile", ())))
        lines.append((row["op"], row["variant"], row["kernel"], tile, *map(str, counts), *shares))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(x.ljust(n) for x, n in zip(line, widths, strict=True)).rstrip() for line in lines)
