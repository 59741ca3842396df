"""Moves on to the next phase of the data when the present one teaches no more."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, cast

import lightning
from lightning.pytorch.callbacks import Callback

from bouton.errors import ConfigError
from bouton.training.callbacks.metrics import log as log_metrics
from bouton.training.module import TrainingModule, positive_int
from bouton.training.schedules import Schedule

log = logging.getLogger("bouton.training")

FIELDS = ("patience", "min_improvement", "smoothing", "min_evaluations", "max_evaluations", "warmup_steps", "stop")


class Plateau:
    """Whether a phase is over, from its validation losses in their order.

    It is over when their exponential moving average has fallen by less than ``min_improvement`` of itself over the last
    ``patience`` evaluations, or after ``max_evaluations``.

    Args:
        smoothing: weight of the old average against the new loss, >= 0 and < 1.
        min_evaluations: never before so many.
        max_evaluations: at the latest after so many; None: no limit.
    """

    def __init__(
        self,
        *,
        patience: int,
        min_improvement: float,
        smoothing: float,
        min_evaluations: int,
        max_evaluations: int | None,
    ) -> None:
        self.patience, self.min_improvement, self.smoothing = patience, min_improvement, smoothing
        self.min_evaluations, self.max_evaluations = min_evaluations, max_evaluations
        self.smoothed: list[float] = []  # after each evaluation of the phase

    def add(self, loss: float) -> str | None:
        """Take a loss in; the reason why the phase is over with it, None if it goes on."""
        old = self.smoothed[-1] if self.smoothed else loss
        self.smoothed.append(self.smoothing * old + (1.0 - self.smoothing) * loss)
        count = len(self.smoothed)
        if count >= self.min_evaluations and count > self.patience:
            before = self.smoothed[-1 - self.patience]
            if before - self.smoothed[-1] < self.min_improvement * abs(before):
                return f"improvement below {self.min_improvement:.3g} over {self.patience} evaluations"
        if self.max_evaluations is not None and count >= self.max_evaluations:
            return f"{count} evaluations"
        return None


class Curriculum(Callback):
    """Enters the next phase of ``trainer.datamodule`` (``data=curriculum``) when the validation loss has settled.

    The loss is that of the phase's own validation set, which is reduced over ranks, so that all decide alike. Weights,
    optimizer and organism state go on; the learning rate climbs again from zero over ``warmup_steps``. A decision at
    step k holds from step k + 2 on: the batch of step k + 1 has been made by then.

    Args:
        rule: when a phase is over; its average begins anew with each phase.
        warmup_steps: optimizer steps in which the learning rate of a new phase reaches the schedule's.
        stop: whether the run ends when the last phase is over.
    """

    def __init__(self, rule: Plateau, *, warmup_steps: int, stop: bool) -> None:
        self.rule = rule
        self.warmup_steps = warmup_steps
        self.stop = stop
        self.transitions: list[dict[str, Any]] = []
        self.completed: dict[str, Any] | None = None  # the end of the last phase
        self._seen = -1
        self._names: tuple[str, ...] = ()

    @property
    def stopped(self) -> bool:
        return self.stop and self.completed is not None

    def phase_at(self, step: int) -> int:
        """Index of the phase of an optimizer step (1 is the first)."""
        return sum(step >= transition["first_step"] for transition in self.transitions)

    def facts(self, step: int) -> dict[str, Any]:
        """What ``summary.json`` says after ``step`` steps."""
        return {
            "phases": list(self._names),
            "phase": self._names[self.phase_at(step)],
            "transitions": list(self.transitions),
            "completed": self.completed,
        }

    # -- learning rate ------------------------------------------------------------------------------------------

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, TrainingModule)
        self._names = tuple(phase.name for phase in self._data(trainer).phases)
        pl_module.schedule = self.warmed(pl_module.schedule)

    def warmed(self, schedule: Schedule) -> Schedule:
        """``schedule`` with the climbs at the begin of the phases."""

        def factor(step: int) -> float:  # 0 is the first
            begins = [t["first_step"] - 1 for t in self.transitions if t["first_step"] - 1 <= step]
            climb = (step - begins[-1] + 1) / self.warmup_steps if begins and self.warmup_steps else 1.0
            return schedule(step) * min(1.0, climb)

        return factor

    # -- phases -------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self.stopped:  # a run that had ended stays ended when it is resumed
            trainer.should_stop = True

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        record = pl_module.record
        if (batch_idx + 1) % trainer.accumulate_grad_batches or record is None:
            return
        due = record.step == 1 or record.step % cast(Any, trainer).log_every_n_steps == 0
        if due or any(record.step == t["first_step"] for t in self.transitions):
            self._log_phase(trainer, record.step)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        step = pl_module.validated_at
        if trainer.state.fn != "fit" or step <= 0 or step == self._seen:
            return
        self._seen = step
        self._log_phase(trainer, step)
        data = self._data(trainer)
        if self.completed is not None or data.phase != data.last_entered:  # the last decision waits for its first step
            return
        loss = pl_module.validation["phase_loss"]
        reason = self.rule.add(loss)
        if reason is None:
            return
        name = self._names[data.phase]
        end = {
            "step": step,
            "reason": reason,
            "phase_loss": loss,
            "smoothed_phase_loss": self.rule.smoothed[-1],
            "loss": pl_module.last_val_loss,
        }
        if data.phase + 1 == len(self._names):
            self.completed = {"from": name, **end}
            log.info("the last phase, %s, is over at step %d (%s)", name, step, reason)
            trainer.should_stop = trainer.should_stop or self.stop
            return
        following = self._names[data.phase + 1]
        samples = data.batch_size * trainer.world_size * trainer.accumulate_grad_batches  # of one optimizer step
        data.enter_next(data.samples_consumed + samples)
        self.transitions.append({"from": name, "to": following, "first_step": step + 2, **end})
        self.rule.smoothed.clear()
        log.info("phase %s is over at step %d (%s): %s begins", name, step, reason, following)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        phase = self.phase_at(trainer.global_step)
        if phase + 1 < len(self._names):
            log.warning(
                "the run ended in phase %s (%d of %d): no %s", self._names[phase], phase + 1, len(self._names),
                ", ".join(self._names[phase + 1 :]),
            )  # fmt: skip

    def _log_phase(self, trainer: lightning.Trainer, step: int) -> None:
        log_metrics(trainer, {"phase": float(self.phase_at(step) + 1)}, step)

    def _data(self, trainer: lightning.Trainer) -> Any:
        return cast(Any, trainer).datamodule  # set at run time, type checkers do not see it

    # -- state --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {
            "smoothed": list(self.rule.smoothed),
            "transitions": [dict(t) for t in self.transitions],
            "completed": None if self.completed is None else dict(self.completed),
            "seen": self._seen,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rule.smoothed = list(state_dict["smoothed"])
        self.transitions = [dict(t) for t in state_dict["transitions"]]
        self.completed, self._seen = state_dict["completed"], state_dict["seen"]


def build_curriculum(config: Mapping[str, Any]) -> Curriculum:
    """The callback of ``cfg.callbacks.curriculum``.

    Raises:
        ConfigError: a value is out of range.
    """
    prefix = "callbacks.curriculum"
    counts = {name: positive_int(config[name], f"{prefix}.{name}") for name in ("patience", "min_evaluations")}
    longest = positive_int(config["max_evaluations"], f"{prefix}.max_evaluations", optional=True)
    if longest is not None and longest < counts["min_evaluations"]:
        raise ConfigError(
            f"{prefix}.max_evaluations = {longest} is less than {prefix}.min_evaluations = {counts['min_evaluations']}"
        )
    improvement, smoothing = (_share(config[name], f"{prefix}.{name}") for name in ("min_improvement", "smoothing"))
    warmup = config["warmup_steps"]
    if isinstance(warmup, bool) or not isinstance(warmup, int) or warmup < 0:
        raise ConfigError(f"{prefix}.warmup_steps = {warmup!r} is not valid: an integer >= 0")
    rule = Plateau(**counts, max_evaluations=longest, min_improvement=improvement, smoothing=smoothing)
    return Curriculum(rule, warmup_steps=warmup, stop=bool(config["stop"]))


def check_phases(data: Mapping[str, Any], callbacks: Mapping[str, Any], trainer: Mapping[str, Any]) -> None:
    """Refuse phases that nobody moves through, and a callback that has nothing to move through.

    Raises:
        ConfigError: says which of the two groups to change.
    """
    phases: Sequence[str] = [name for name, phase in (data.get("phases") or {}).items() if phase is not None]
    if callbacks.get("curriculum") is None:
        if len(phases) > 1:
            raise ConfigError(
                f"data.phases has {len(phases)} phases and callbacks.curriculum = null: add callbacks=curriculum, or "
                "set all phases but one to null"
            )
        return
    if not phases:
        raise ConfigError(f"callbacks=curriculum needs data with phases, not data={data.get('name')}: data=curriculum")
    if trainer.get("val_every") is None:
        raise ConfigError("callbacks=curriculum decides at validations and trainer.val_every = null: set it")


def _share(value: Any, path: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ConfigError(f"{path} = {value!r} is not valid: a number >= 0 and < 1")
    return float(value)
