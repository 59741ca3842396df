"""``progress.jsonl``: everything that a search learned, one record a line, the only thing that a resume reads.

Each trial writes its own line, in its own process, the moment it ends; the search writes what it decided. A line is one
write under a lock, and a torn last line (the machine died) is cut off by the next writer, so every record is either
there or not.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bouton.errors import ConfigError

NAME = "progress.jsonl"
Record = dict[str, Any]


class Journal:
    """The records of one search, on disk.

    Args:
        path: of the file; it is made with the first record.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read_to = 0
        self.records: list[Record] = []
        self.trials: dict[str, Record] = {}

    def refresh(self) -> None:
        """Read what was written since the last time, by whatever process."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._read_to)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # being written, or torn
                self._read_to += len(line)
                record = _parse(line)
                if record is None:
                    continue
                self.records.append(record)
                if record["kind"] == "trial":
                    self.trials.setdefault(record["id"], record)

    def append(self, kind: str, **content: Any) -> Record:
        """Write one record and make it durable."""
        record = {"kind": kind, **content}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = (json.dumps(plain(record), allow_nan=False, default=str) + "\n").encode()
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            end = _whole_lines(descriptor)
            os.ftruncate(descriptor, end)
            os.pwrite(descriptor, line, end)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self.refresh()
        return record

    def of_kind(self, kind: str) -> list[Record]:
        """All records of a kind, in the order in which they were written."""
        return [record for record in self.records if record["kind"] == kind]


@contextmanager
def exclusive(path: Path, busy: str | None = None) -> Iterator[None]:
    """Hold a lock file. It is free again whatever ends the process that held it.

    Args:
        path: of the lock file.
        busy: the error to raise where another process holds it; None: wait.

    Raises:
        ConfigError: it is held, and ``busy`` says what to tell.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if busy is None else fcntl.LOCK_NB))
        except BlockingIOError:
            raise ConfigError(busy or "") from None
        yield
    finally:
        os.close(descriptor)


def _whole_lines(descriptor: int) -> int:
    """Length of the file up to the last line break."""
    size = os.fstat(descriptor).st_size
    end, block = size, 1 << 16
    while end > 0:
        begin = max(0, end - block)
        at = os.pread(descriptor, end - begin, begin).rfind(b"\n")
        if at >= 0:
            return begin + at + 1
        end = begin
    return 0


def _parse(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and "kind" in record else None


def plain(value: Any) -> Any:
    """Not-a-number and infinity as null: JSON has neither."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
