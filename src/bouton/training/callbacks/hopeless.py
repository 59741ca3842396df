"""Stop a trial whose loss, however kindly extrapolated, cannot reach what others have reached."""

from __future__ import annotations

from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from bouton.training.extrapolation import Extrapolation, extrapolate
from bouton.training.module import TrainingModule


class HopelessStop(Callback):
    """Ends training when the optimistic bound of the final validation loss is above ``threshold``.

    A power law does not know that a falling learning rate helps at the end: ``slack`` lowers the bound by that share. A
    run that reaches its last step is never touched.

    Args:
        threshold: the loss to reach at the last step, nats.
        confidence: of the optimistic bound.
        slack: share of the loss.
    """

    def __init__(self, threshold: float, confidence: float, slack: float) -> None:
        self.threshold, self.confidence, self.slack = threshold, confidence, slack
        self.steps: list[int] = []
        self.losses: list[float] = []
        self.verdict: dict[str, float] | None = None  # of a stopped run: what ``summary.json`` says

    @property
    def stopped(self) -> bool:
        return self.verdict is not None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self.stopped:  # a run that had stopped stays stopped when it is resumed
            trainer.should_stop = True

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        step = pl_module.validated_at
        if trainer.state.fn != "fit" or step <= 0 or self.stopped or (self.steps and step <= self.steps[-1]):
            return
        self.steps.append(step)
        self.losses.append(pl_module.last_val_loss)
        last = int(trainer.max_steps)
        if step >= last:
            return
        found = extrapolate(self.steps, self.losses, last, self.confidence)
        if found is not None and self._hopeless(found):
            self.verdict = {
                "predicted_loss": found.predicted,
                "optimistic_loss": found.optimistic,
                "threshold": self.threshold,
                "step": float(step),
            }
            trainer.should_stop = True

    def _hopeless(self, found: Extrapolation) -> bool:
        return found.optimistic * (1 - self.slack) > self.threshold

    def state_dict(self) -> dict[str, Any]:
        return {"steps": list(self.steps), "losses": list(self.losses), "verdict": self.verdict}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.steps, self.losses = list(state_dict["steps"]), list(state_dict["losses"])
        self.verdict = state_dict["verdict"]
