"""Ends a run in order: when its time is over, or when somebody interrupts it."""

from __future__ import annotations

import signal
import threading
import time
from datetime import timedelta
from types import FrameType
from typing import Any

import lightning
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback

from bouton.errors import ConfigError
from bouton.training.callbacks.access import find
from bouton.training.callbacks.checkpoint import Checkpointing

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopControl(Callback):
    """Stops after ``max_time`` with a last validation; at the first SIGINT or SIGTERM saves at the next step boundary.

    A second signal ends the process at once, as it would have without this class. All ranks stop at the same step.
    """

    def __init__(self, max_time: timedelta | None) -> None:
        self.max_time = max_time
        self.elapsed = 0.0  # seconds before the last resume
        self.timed_out = False
        self._begin = 0.0
        self._signalled = False
        self._leave = False
        self._previous: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._begin = time.monotonic()
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._previous[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True
        self._restore()

    def _restore(self) -> None:
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, handler)

    def seconds(self) -> float:
        """Time spent in training so far, before and after resumes."""
        return self.elapsed + (time.monotonic() - self._begin if self._begin else 0.0)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        late = self.max_time is not None and self.seconds() >= self.max_time.total_seconds()
        if dist.is_available() and dist.is_initialized():
            flags = torch.tensor([late, self._signalled], dtype=torch.int32, device=pl_module.device)
            dist.all_reduce(flags, op=dist.ReduceOp.MAX)
            late, self._leave = bool(flags[0]), bool(flags[1])
        else:
            self._leave = self._signalled
        self.timed_out = late and trainer.global_step < trainer.max_steps
        if late or trainer.global_step >= trainer.max_steps:
            trainer.should_stop = True  # Lightning then validates once more, so every run ends with a validation

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._leave:
            self._leave = False
            checkpointing = find(trainer, Checkpointing)
            if checkpointing is not None:
                checkpointing.save_and_leave(trainer)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._restore()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        self._restore()

    def state_dict(self) -> dict[str, Any]:
        return {"elapsed": self.seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.elapsed = state_dict["elapsed"]


def parse_max_time(value: Any) -> timedelta | None:
    """``trainer.max_time``: None, seconds, or text ``hours:minutes:seconds`` with an optional ``days:`` in front.

    Raises:
        ConfigError: it is none of these.
    """
    if value is None:
        return None
    message = f"trainer.max_time = {value!r} is not valid: null, a number of seconds > 0, or HH:MM:SS"
    try:
        if isinstance(value, bool):
            raise ValueError
        if isinstance(value, int | float):
            time_limit = timedelta(seconds=float(value))
        else:
            parts = [int(part) for part in str(value).split(":")]
            if not 3 <= len(parts) <= 4 or min(parts) < 0:
                raise ValueError
            days, hours, minutes, seconds = [0] * (4 - len(parts)) + parts
            time_limit = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    except (ValueError, OverflowError):
        raise ConfigError(message) from None
    if time_limit <= timedelta(0):
        raise ConfigError(message)
    return time_limit
