"""Preparing data: one writer at a time, and clear errors of the disk."""

from __future__ import annotations

import errno
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
