"""Stop when the validation loss no longer improves."""

from __future__ import annotations

import math
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from bouton.training.module import TrainingModule


class EarlyStop(Callback):
    """Ends training after ``patience`` validations in a row without a gain of more than ``min_delta`` nats."""

    def __init__(self, patience: int, min_delta: float) -> None:
        self.patience = patience
        self.min_delta = min_delta
        self.best = math.inf
        self.waited = 0
        self._seen = -1

    @property
    def stopped(self) -> bool:
        return self.waited >= self.patience

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self.stopped:  # a run that had stopped stays stopped when it is resumed
            trainer.should_stop = True

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        if trainer.state.fn != "fit" or pl_module.validated_at == self._seen:
            return
        self._seen = pl_module.validated_at
        if pl_module.last_val_loss < self.best - self.min_delta:
            self.best, self.waited = pl_module.last_val_loss, 0
        else:
            self.waited += 1
        if self.stopped:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited, "seen": self._seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.waited, self._seen = state_dict["best"], state_dict["waited"], state_dict["seen"]
