"""A graph in one file: saved whole or not at all, opened without copying."""

from __future__ import annotations

import json
from pathlib import Path

from bouton.errors import DataError
from bouton.substrate import engine as compiled
from bouton.substrate.graph import Graph


def save(graph: Graph, path: str | Path) -> None:
    """Write the graph with everything it holds: names, working memory, modulator, random numbers, recorded changes.

    Whatever interrupts this, the file is the old one or the new one.

    Raises:
        DataError: it cannot be written.
    """
    extra = json.dumps({"labels": graph.labels}).encode()
    try:
        graph.engine.save(Path(path), extra)
    except ValueError as error:
        raise DataError(str(error)) from None


def open(path: str | Path, *, verify: bool = True, threads: int = 0) -> Graph:
    """The graph of a file, mapped into memory: nothing is copied, and changes stay in this process until it is saved.

    Args:
        verify: compare the checksums, which reads the whole file; else only those of its table of contents.
        threads: for the checksums; 0: one per core.

    Raises:
        DataError: the file is missing, is something else, or is damaged: the section is named.
    """
    try:
        engine, extra = compiled.load(Path(path), verify, threads)
    except ValueError as error:
        raise DataError(str(error)) from None
    return Graph.of(engine, json.loads(extra or b"{}").get("labels", []))
