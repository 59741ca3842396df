"""Checkpoints at optimizer-step boundaries, and the exact resume from one."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback

from bouton.errors import CheckpointError, InterruptedRunError
from bouton.training.callbacks.access import callbacks_of
from bouton.training.checkpoints import BEST, FORMAT, KEY, LAST
from bouton.training.module import TrainingModule
from bouton.training.random_state import get_random_state, set_random_state


class Checkpointing(Callback):
    """Saves ``last.ckpt`` at the start, every ``save_every`` optimizer steps and at the end, ``best.ckpt`` at the best.

    All saves happen at one point: the step and its validation are over, nothing of the next step has happened. What a
    resumed run sees there is therefore exactly what the uninterrupted run saw, generators included.

    Args:
        folder: the run folder.
        config: the resolved configuration as YAML text, kept in the checkpoint.
        facts: what a resume must find unchanged although the configuration does not tell it.
        save_every: optimizer steps between checkpoints; None: only at the end.
        save_best: whether to keep the weights of the best validation.
        resume: a checkpoint to continue from, as loaded by ``read_checkpoint``.
    """

    def __init__(
        self,
        folder: Path,
        *,
        config: str,
        facts: Mapping[str, Any],
        save_every: int | None,
        save_best: bool,
        resume: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        self.config = config
        self.facts = dict(facts)
        self.save_every = save_every
        self.save_best = save_best
        self.best_loss = math.inf
        self.best_step = -1
        self.best_metrics: dict[str, float] = {}
        self.saving_seconds = 0.0
        self._resume = resume
        self._random_state: dict[str, Any] | None = None
        self._saved_step = -1
        self._seen_validation = -1
        self._best_is_due = False
        self._last_is_due = True  # also before the first step: a run killed early can go on as well

    # -- resume -------------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        if self._resume is None:
            return
        checkpoint, self._resume = self._resume, None
        meta = checkpoint[KEY]
        try:
            pl_module.load_state_dict(checkpoint["state_dict"], strict=True)
            trainer.optimizers[0].load_state_dict(checkpoint["optimizer_states"][0])
        except (RuntimeError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(f"the checkpoint does not fit this model: {reason}") from error
        for callback in callbacks_of(trainer):
            if callback.state_key in checkpoint["callbacks"]:
                callback.load_state_dict(checkpoint["callbacks"][callback.state_key])
        scheduler = trainer.lr_scheduler_configs[0].scheduler
        scheduler.load_state_dict(checkpoint["lr_schedulers"][0])
        # A curriculum, restored above, has its part in the schedule. The saved rate is that of the old
        # `trainer.max_steps`; with the same one it is the same float.
        for group, base in zip(trainer.optimizers[0].param_groups, scheduler.base_lrs, strict=True):
            group["lr"] = base * pl_module.schedule(scheduler.last_epoch)
        pl_module.load_progress(meta["progress"])
        # A resumed run is a first epoch that starts late: only the totals count on.
        loop = trainer.fit_loop.epoch_loop
        total: Any = loop.batch_progress.total
        total.ready = total.started = total.processed = total.completed = meta["step"] * trainer.accumulate_grad_batches
        automatic = pl_module.automatic_optimization
        steps = (
            loop.automatic_optimization.optim_progress.optimizer.step.total
            if automatic
            else loop.manual_optimization.optim_step_progress.total
        )
        steps.ready = steps.completed = meta["step"]
        loop._batches_that_stepped = meta["step"]
        # ``last.ckpt`` is written at once: the tables were cut back, and a later one must not outlive them.
        self._seen_validation = pl_module.validated_at
        states = meta["random_states"]
        self._random_state = states[trainer.global_rank] if trainer.global_rank < len(states) else None

    def state_dict(self) -> dict[str, Any]:
        return {"best_loss": self.best_loss, "best_step": self.best_step, "best_metrics": dict(self.best_metrics)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_loss, self.best_step = state_dict["best_loss"], state_dict["best_step"]
        self.best_metrics = dict(state_dict["best_metrics"])

    # -- save ---------------------------------------------------------------------------------------------------

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        if trainer.state.fn == "fit":
            self.note_validation(pl_module)

    def note_validation(self, module: TrainingModule) -> None:
        """Take the last validation into the record of the best."""
        if module.validated_at == self._seen_validation:
            return
        self._seen_validation = module.validated_at
        if module.last_val_loss < self.best_loss:
            self.best_loss, self.best_step = module.last_val_loss, module.validated_at
            self.best_metrics = dict(module.validation)
            self._best_is_due = self.save_best

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._random_state is not None:
            # Making the data loaders' iterators has drawn numbers since: the state belongs here.
            set_random_state(self._random_state)
            self._random_state = None
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self.save_if_due(trainer)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.save_if_due(trainer, final=True)

    def save_if_due(self, trainer: lightning.Trainer, *, final: bool = False) -> None:
        """Write what is due at this boundary between two optimizer steps."""
        step = trainer.global_step
        due = final or self._last_is_due or (self.save_every is not None and step > 0 and step % self.save_every == 0)
        self._last_is_due = False
        best, self._best_is_due = self._best_is_due, False
        begin = time.perf_counter()
        if best or (due and step != self._saved_step):
            for logger in trainer.loggers:
                logger.save()  # the rows up to this step must be in the files before the checkpoint is
        if best:
            trainer.save_checkpoint(self.folder / BEST)
        if due and step != self._saved_step:
            trainer.save_checkpoint(self.folder / LAST)
            self._saved_step = step
        self.saving_seconds += time.perf_counter() - begin

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        own = get_random_state() if self._random_state is None else self._random_state
        states: list[Any] = [own]
        if dist.is_available() and dist.is_initialized():
            states = [None] * trainer.world_size
            dist.all_gather_object(states, own)
        checkpoint[KEY] = {
            "format": FORMAT,
            "step": trainer.global_step,
            "config": self.config,
            "facts": self.facts,
            "random_states": states,
            "progress": pl_module.progress(),
        }

    # -- interruption -------------------------------------------------------------------------------------------

    def save_and_leave(self, trainer: lightning.Trainer) -> None:
        """Save at this step boundary and end the run with a line that says how to go on."""
        self.save_if_due(trainer, final=True)
        raise InterruptedRunError(
            f"interrupted at step {trainer.global_step}: continue with ckpt_path={(self.folder / LAST)}"
        )
