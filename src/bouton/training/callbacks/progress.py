"""A rich progress bar with loss, learning rate, tokens per second and time left; plain lines where output is a file."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from bouton.training.callbacks.access import find
from bouton.training.callbacks.stop import StopControl
from bouton.training.callbacks.throughput import Throughput
from bouton.training.module import TrainingModule


class ProgressBar(Callback):
    """Shows the state of training on rank 0.

    Args:
        refresh_every: optimizer steps between two updates of the bar.
        console: where to draw (tests pass their own).
    """

    def __init__(self, refresh_every: int = 1, console: Console | None = None) -> None:
        self.refresh_every = refresh_every
        self.console = console or Console(stderr=True, highlight=False)
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if not trainer.is_global_zero or not self.console.is_terminal:
            return
        self._progress = Progress(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[text]}"),
            console=self.console,
            expand=True,
        )
        self._progress.start()
        self._task = self._progress.add_task("train", total=trainer.max_steps, completed=trainer.global_step, text="")

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        if self._progress is None or self._task is None or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        if trainer.global_step % self.refresh_every == 0 or trainer.global_step == trainer.max_steps:
            self._progress.update(self._task, completed=trainer.global_step, text=self._text(trainer, pl_module))

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        if trainer.state.fn != "fit" or not trainer.is_global_zero:
            return
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, text=self._text(trainer, pl_module))
        else:
            self.console.print(
                f"step {trainer.global_step}/{trainer.max_steps}  {self._text(trainer, pl_module)}", markup=False
            )

    def _text(self, trainer: lightning.Trainer, module: TrainingModule) -> str:
        parts = []
        if module.record is not None:
            parts += [f"loss {module.record.loss:.4f}", f"lr {module.record.lr:.2e}"]
        if not math.isnan(module.last_val_loss):
            parts.insert(1, f"val {module.last_val_loss:.4f}")
        throughput = find(trainer, Throughput)
        if throughput is not None and throughput.steps:
            parts.append(f"{throughput.tokens_per_second:,.0f} tokens/s")
            left = (trainer.max_steps - trainer.global_step) * throughput.seconds / throughput.steps
            stop = find(trainer, StopControl)
            if stop is not None and stop.max_time is not None:
                left = min(left, max(0.0, stop.max_time.total_seconds() - stop.seconds()))
            parts.append(f"{timedelta(seconds=round(left))} left")
        return "  ".join(parts)

    def _close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = self._task = None

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._close()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        self._close()
