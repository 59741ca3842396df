"""Tokens per second, model FLOPs utilisation and peak memory.

The utilisation (MFU, Chowdhery et al. 2022) is FLOPs per token of training times tokens per second over the peak of all
devices together. Its FLOPs are those that the model states for a forward pass (``flops_per_token``: matrix products and
attention, causal scores counted once, plus what the mechanisms add; no norms, no activations), times three for forward
and backward; what checkpointing or a reversible stack computes again is not counted. Its peak is that of the device in
use at the precision in use, see :func:`bouton.training.costs.peak_flops`.
"""

from __future__ import annotations

import math
import time
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from bouton.training.callbacks.access import find
from bouton.training.callbacks.checkpoint import Checkpointing
from bouton.training.callbacks.metrics import log
from bouton.training.costs import peak_flops, peak_memory
from bouton.training.module import TrainingModule


class Throughput(Callback):
    """Times optimizer steps, without validation, checkpoints and the first step (compilation, warm caches).

    Args:
        tokens_per_step: of the global batch.
        flops_per_token: of training, forward and backward; None where unknown.
        log_every: optimizer steps between two rows in ``costs.csv``.
        mfu: whether to find the device's peak and report the utilisation.
        precision: Lightning's name of the precision in use.
    """

    def __init__(
        self, *, tokens_per_step: int, flops_per_token: float | None, log_every: int, mfu: bool, precision: str
    ) -> None:
        self.tokens_per_step = tokens_per_step
        self.flops_per_token = flops_per_token
        self.log_every = log_every
        self.mfu = mfu
        self.precision = precision
        self.seconds = 0.0  # timed training, before and after resumes
        self.steps = 0  # timed steps
        self.peak: float | None = None
        self.peak_source = "not asked for"
        self.tokens_per_second = math.nan  # over the last logging interval
        self._mark: float | None = None
        self._pauses = 0.0
        self._pause_began = 0.0
        self._interval = (0.0, 0)
        self._first = True

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self.mfu:
            self.peak, self.peak_source = peak_flops(pl_module.device, self.precision)
            if self.peak is not None:
                self.peak *= trainer.world_size

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._mark = time.perf_counter()
        self._pauses = self._paused(trainer)

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._pause_began = time.perf_counter()

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self._mark is not None:  # moving the mark takes the pause out of the step that is being timed
            self._mark += time.perf_counter() - self._pause_began

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        if (batch_idx + 1) % trainer.accumulate_grad_batches or self._mark is None or pl_module.record is None:
            return
        now, paused = time.perf_counter(), self._paused(trainer)
        elapsed = now - self._mark - (paused - self._pauses)
        self._mark, self._pauses = now, paused
        if self._first:
            self._first = False
            return
        self.seconds += elapsed
        self.steps += 1
        self._interval = (self._interval[0] + elapsed, self._interval[1] + 1)
        self.tokens_per_second = self._interval[1] * self.tokens_per_step / max(self._interval[0], 1e-9)
        step = pl_module.record.step
        if step % self.log_every == 0:
            self._interval = (0.0, 0)
            values = {"cost/tokens_per_second": self.tokens_per_second, "cost/train_seconds": self.seconds}
            if (mfu := self.utilisation(self.tokens_per_second)) is not None:
                values["cost/mfu"] = mfu
            if (memory := peak_memory(pl_module.device)) is not None:
                values["cost/peak_memory_bytes"] = float(memory)
            log(trainer, values, step)

    def mean_tokens_per_second(self) -> float | None:
        """Over all timed steps of the run."""
        return self.steps * self.tokens_per_step / self.seconds if self.seconds > 0 else None

    def utilisation(self, tokens_per_second: float | None) -> float | None:
        """Fraction of the peak that the model's own FLOPs use; None where a factor is unknown."""
        if not self.peak or not self.flops_per_token or tokens_per_second is None:
            return None
        return self.flops_per_token * tokens_per_second / self.peak

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds, self.steps = state_dict["seconds"], state_dict["steps"]

    def _paused(self, trainer: lightning.Trainer) -> float:
        checkpointing = find(trainer, Checkpointing)
        return checkpointing.saving_seconds if checkpointing is not None else 0.0
