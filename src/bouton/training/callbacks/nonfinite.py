"""Stop before a non-finite loss or gradient reaches the weights, and keep the batch that caused it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from bouton.errors import TrainingError
from bouton.files import write_atomically
from bouton.training.module import StepRecord, TrainingModule


class NonFiniteGuard(Callback):
    """Checks loss and gradient norm of every optimizer step before the update.

    Loss and gradients are those of all ranks, so all ranks stop together. Rank 0 saves its micro-batches of the step
    to ``nonfinite_batch.pt`` in the run folder, rank r > 0 to ``nonfinite_batch_rank<r>.pt``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._batches: list[Any] = []
        self._rank = 0

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        self._rank = trainer.global_rank
        pl_module.before_update.append(self.check)

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._batches = []
        self._batches.append(batch)

    def check(self, record: StepRecord) -> None:
        """Raise if the step is not finite.

        Raises:
            TrainingError: with the step, what is not finite, and where the batch lies.
        """
        values = {"loss": record.loss, "auxiliary loss": record.auxiliary, "gradient norm": record.grad_norm}
        bad = [name for name, value in values.items() if value is not None and not math.isfinite(value)]
        if not bad:
            return
        name = "nonfinite_batch.pt" if self._rank == 0 else f"nonfinite_batch_rank{self._rank}.pt"
        content = {"step": record.step, "rank": self._rank, "batches": self._batches, **values}
        write_atomically(self.folder / name, lambda file: torch.save(content, file))
        raise TrainingError(
            f"{bad[0]} is {values[bad[0]]} at step {record.step}: stopped before the update; "
            f"the batch is in {self.folder / name}"
        )
