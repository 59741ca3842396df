"""Small tools for files that other processes read: whole or not at all, one writer at a time, clear errors."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from bouton.errors import DataError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST}


@contextmanager
def disk_errors(folder: Path, what: str) -> Iterator[None]:
    """Turn a full or read-only disk, or a path that is no folder, into one clear line."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DataError(
                f"no space left while writing {what} to {folder}: free some, or set data.cache_dir to another disk; "
                "nothing half-written is used, and the next run continues"
            ) from error
        if error.errno in _FORBIDDEN:
            raise DataError(
                f"{what} cannot be written to {folder} ({error.strerror}): set data.cache_dir to a writable folder"
            ) from error
        raise


def publish(path: Path, text: str) -> None:
    """Write ``path`` so that a reader sees the old content, or the whole new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Make a rename inside ``folder`` survive a power cut, where the system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # not every system opens folders
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock ``path`` (ranks and joblib jobs prepare the same data); the system frees it if we are killed."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        from rich.console import Console

        Console(stderr=True, soft_wrap=True).print(f"waiting for another process that prepares {path.stem}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
