"""Files that are either the old or the new, never half of one: written beside the target, synced, then renamed. And
files that a user names: what is wrong with one is said in one line.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from bouton.errors import DataError


def write_atomically(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Replace ``path`` by what ``write(file)`` puts into a binary file.

    A process killed at any moment leaves the previous content (or no file), and at worst a ``*.partial`` beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextmanager
def reading_text(what: str) -> Iterator[None]:
    """For the time in which a user's text file is read, which messages call ``what``.

    Raises:
        DataError: it is missing, cannot be read, or is not UTF-8.
    """
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{what}: there is no such file") from None
    except UnicodeDecodeError:
        raise DataError(f"{what} is not UTF-8 text") from None
    except OSError as error:
        raise DataError(f"{what} cannot be read: {error.strerror}") from None


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` by ``text`` in UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data``."""
    write_atomically(path, lambda file: _put(file, data))


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` by ``value`` as indented JSON (not-a-number and infinity become null: JSON has neither)."""
    write_text(path, json.dumps(_finite(value), indent=2, default=str, allow_nan=False) + "\n")


def remove_partials(folder: Path) -> None:
    """Delete what killed processes left half-written in ``folder``."""
    for leftover in folder.glob(".*.partial"):
        leftover.unlink(missing_ok=True)


def _put(file: IO[bytes], data: bytes) -> None:
    file.write(data)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float) and value - value != 0.0:
        return None
    return value


def sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` durable; file systems that cannot open a folder need no help from us."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)
