"""Training by local rules: the body learns by itself, and everything around it stays as with gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableMapping
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from bouton.errors import ConfigError
from bouton.training.module import Batch, TrainingModule

NAME = "local"


class LocalRule(Optimizer):
    """Carries the rate of learning, which schedules move; a step evaluates its closure, in which the body learns."""

    def __init__(self, parameters: Iterable[Tensor], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        return None if closure is None else closure()


class LocalTrainingModule(TrainingModule):
    """:class:`TrainingModule` for a body with ``learn(tokens, targets, starts, eta) -> (summed nats, targets)``.

    An optimizer step is one such call. The loss of a step is what the body was surprised by before it learned.
    """

    def __init__(self, body: Any, **arguments: Any) -> None:
        super().__init__(body, **arguments)
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        rule = LocalRule([self.body.rest], float(self.optimizer_config["lr"]))
        return {"optimizer": rule, "lr_scheduler": {"scheduler": LambdaLR(rule, self.schedule), "interval": "step"}}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        rule, schedule = self.optimizers(), self.lr_schedulers()
        assert isinstance(rule, LightningOptimizer) and isinstance(schedule, LambdaLR)

        def learn() -> Tensor:
            eta = float(rule.param_groups[0]["lr"])
            nats, targets = self.body.learn(batch["tokens"], batch["targets"], batch["starts"], eta)
            self._sums = torch.tensor([nats, 0.0, targets], dtype=torch.float64)
            return torch.tensor(nats / max(targets, 1))

        loss: Tensor = rule.step(closure=learn)
        schedule.step()
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        super().on_before_optimizer_step(optimizer)
        assert self.record is not None
        self.record.grad_norm = None
        for check in self.before_update:
            check(self.record)


def without_gradients(config: MutableMapping[str, Any]) -> None:
    """Hold the configuration of a run to what has an effect on a body that learns by local rules, in place.

    Raises:
        ConfigError: a field that asks for something else.
    """
    trainer, model = config["trainer"], config["model"]["body"]
    if config["optimizer"]["name"] not in ("adamw", NAME):  # adamw is what a configuration has that names none
        raise ConfigError(
            f"optimizer = {config['optimizer']['name']} is not valid: model={model} learns by its own rule at the rate "
            f"model.eta"
        )
    for field, valid in (("accumulate_grad_batches", 1), ("devices", 1), ("compile", False)):
        if trainer[field] != valid:
            raise ConfigError(
                f"trainer.{field} = {trainer[field]} is not valid: model={model} learns by local rules, only {valid} is"
            )
    if trainer["accelerator"] in ("gpu", "cuda"):
        raise ConfigError(
            f"trainer.accelerator = {trainer['accelerator']} is not valid: model={model} computes on the CPU: cpu, auto"
        )
    if trainer["precision"] not in ("auto", "32-true"):
        raise ConfigError(
            f"trainer.precision = {trainer['precision']} is not valid: model={model} computes in float32: 32-true, auto"
        )
    config["optimizer"] = {"name": NAME, "lr": config["model"]["eta"]}
    trainer.update(gradient_clip_val=None, accelerator="cpu", precision="32-true")
