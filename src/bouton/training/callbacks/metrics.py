"""Sends the metrics of steps and validations to all loggers, under the number of the optimizer step."""

from __future__ import annotations

from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from bouton.training.module import TrainingModule


class MetricsLogging(Callback):
    """Logs the loss of a step every ``log_every`` optimizer steps (and of the first), and each validation."""

    def __init__(self, log_every: int) -> None:
        self.log_every = log_every

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        record = pl_module.record
        if (batch_idx + 1) % trainer.accumulate_grad_batches or record is None:
            return
        if record.step % self.log_every and record.step != 1:
            return
        norm = {} if record.grad_norm is None else {"train/grad_norm": record.grad_norm}
        metrics = {"train/loss": record.loss, **norm, "train/lr": record.lr}
        if record.auxiliary:
            metrics["train/auxiliary_loss"] = record.auxiliary
        log(trainer, metrics, record.step)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        metrics = {f"val/{name}": value for name, value in pl_module.validation.items()}
        metrics.update({f"vitals/{name}": value for name, value in pl_module.vitals.items()})
        log(trainer, metrics, pl_module.validated_at)


def log(trainer: lightning.Trainer, metrics: dict[str, float], step: int) -> None:
    """Hand ``metrics`` to every logger; loggers write on rank 0 only."""
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step)
