"""Where the runs of a table were made: machines, versions, commits, commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

_GIB = 2**30


def lines(frame: pd.DataFrame) -> tuple[str, ...]:
    """What ``environment.json`` of the runs says, each different value once, with a warning where runs differ."""
    found = [record for folder in frame["folder"] if (record := _read(Path(folder))) is not None]
    if not found:
        return ("No run has recorded its environment.",)
    parts = {
        "machine": _distinct(_machine(record) for record in found),
        "code": _distinct(_commit(record) for record in found),
        "libraries": _distinct(_libraries(record) for record in found),
        "command": _distinct("`" + " ".join(map(str, record.get("command") or [])) + "`" for record in found),
    }
    result = []
    for name, values in parts.items():
        differ = (
            " (**the runs differ in this**)" if len(values) > 1 and name in ("machine", "code", "libraries") else ""
        )
        result.append(f"{name}{differ}: {'; '.join(values)}")
    return tuple(result)


def _distinct(texts: Any) -> list[str]:
    return list(dict.fromkeys(text for text in texts if text))


def _machine(record: dict[str, Any]) -> str:
    machine = record.get("machine") or {}
    memory = machine.get("memory_bytes")
    gpus = ", ".join(machine.get("gpus") or []) or "no GPU"
    parts = [machine.get("cpu"), f"{machine.get('cores')} cores", f"{machine.get('threads')} threads", gpus]
    if memory:
        parts.append(f"{memory / _GIB:.0f} GiB")
    return ", ".join(str(part) for part in parts if part)


def _commit(record: dict[str, Any]) -> str:
    git = record.get("git")
    if not git:
        return "commit not recorded"
    return f"commit {str(git.get('commit'))[:12]}{' with changes' if git.get('modified') else ''}"


def _libraries(record: dict[str, Any]) -> str:
    versions = {"python": record.get("python"), **(record.get("libraries") or {})}
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version)


def _read(folder: Path) -> dict[str, Any] | None:
    try:
        content = json.loads((folder / "environment.json").read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
