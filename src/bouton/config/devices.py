"""GPUs for concurrent jobs: each job of a multirun holds as many as it asks for, and nobody else gets them.

A lease is a lock on a file in the machine's temporary folder, one for each device. It ends with the process that holds
it, however that ends, and holds between all grids and searches on the machine.
"""

from __future__ import annotations

import fcntl
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig

from bouton.config import elastic
from bouton.errors import ConfigError

VISIBLE = "CUDA_VISIBLE_DEVICES"
_PATIENCE = 0.2  # seconds between two looks for a free device


@contextmanager
def for_job(trainer: Mapping[str, Any] | DictConfig) -> Iterator[None]:
    """Hold the GPUs that a job with ``cfg.trainer`` trains on; nothing on a CPU, or where it names them itself.

    Raises:
        ConfigError: ``trainer.devices`` is not valid, or more than there are.
    """
    named = isinstance(trainer.get("devices"), ListConfig | list | tuple)
    if named or trainer.get("accelerator") in ("cpu", "mps") or not visible_devices():
        yield
        return
    with lease(elastic.device_count(trainer)):
        yield


def visible_devices() -> list[str]:
    """The GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them; empty without any."""
    given = os.environ.get(VISIBLE)
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip() not in ("", "-1")]
    import torch  # seconds, so not where the variable says it

    return [str(index) for index in range(torch.cuda.device_count())]


def lock_folder() -> Path:
    """Where the locks are. A cluster's job numbers its devices for itself, so it has locks of its own."""
    owner = str(os.getuid()) if hasattr(os, "getuid") else "all"
    return Path(tempfile.gettempdir()) / "-".join(filter(None, ["bouton-gpus", owner, os.environ.get("SLURM_JOB_ID")]))


@contextmanager
def lease(count: int, devices: Sequence[str] | None = None, folder: Path | None = None) -> Iterator[list[str]]:
    """Wait for ``count`` free devices, and let this process see only those until the end of the block.

    A process that has used CUDA already cannot change what it sees: it waits for the devices that it had.

    Args:
        count: how many.
        devices: to choose from; None: those that are visible now.
        folder: of the locks; None: the machine's.

    Raises:
        ConfigError: there are not as many.
    """
    known = list(visible_devices() if devices is None else devices)
    if count > len(known):
        raise ConfigError(f"trainer.devices = {count} is too many: {len(known)} GPU(s) can be used here")
    before = os.environ.get(VISIBLE)
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        known = known[:count]
    held = _wait(known, count, folder or lock_folder())
    os.environ[VISIBLE] = ",".join(held)
    try:
        yield list(held)
    finally:
        _restore(before)
        for descriptor in held.values():
            os.close(descriptor)


def _restore(before: str | None) -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return  # this process will see these devices for ever: the next lease must ask for the same
    if before is None:
        os.environ.pop(VISIBLE, None)
    else:
        os.environ[VISIBLE] = before


def _wait(devices: Sequence[str], count: int, folder: Path) -> dict[str, int]:
    """device -> descriptor of its lock, for the first ``count`` free ones; all or none: no deadlocks."""
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        held: dict[str, int] = {}
        for device in devices:
            if len(held) == count:
                break
            descriptor = os.open(folder / f"{device.replace('/', '-')}.lock", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
            else:
                held[device] = descriptor
        if len(held) == count:
            return held
        for descriptor in held.values():
            os.close(descriptor)
        time.sleep(_PATIENCE)
