"""The Lightning module: a body, its loss, its optimizer, and what happens once per optimizer step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import lightning
import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from bouton.errors import ConfigError
from bouton.mechanisms.base import Mechanism
from bouton.mechanisms.vitals import Vitals
from bouton.training.metrics import IGNORED, LabelMetrics, TokenMetrics
from bouton.training.optimizers import build_optimizer
from bouton.training.random_state import get_random_state, set_random_state
from bouton.training.schedules import build_schedule

Batch = Mapping[str, Tensor]

# Lightning calls hooks on the top module only; these are passed on to the mechanisms that override them.
FORWARDED_HOOKS = (
    "on_fit_start",
    "on_train_start",
    "on_train_batch_start",
    "on_train_batch_end",
    "on_before_optimizer_step",
    "on_validation_start",
    "on_validation_end",
    "on_train_end",
)


@dataclass
class StepRecord:
    """What one optimizer step saw, over all micro-batches and ranks."""

    step: int  # 1 for the first optimizer step
    loss: float  # nats per target token
    auxiliary: float  # the mechanisms' own loss terms, weighted by target tokens
    targets: int  # number of target tokens
    lr: float  # of the first parameter group
    grad_norm: float | None = math.nan  # before clipping; None where nothing has a gradient


class TrainingModule(lightning.LightningModule):
    """Trains a body on ``{"tokens", "targets", "starts"}`` batches.

    The loss of an optimizer step is the mean over all target tokens of the *global* batch (all ranks, all
    micro-batches), whichever way the targets are spread over them. Each micro-batch contributes its sum divided by
    the nominal number of targets; where some targets are ignored, the gradients are rescaled once per step.

    Args:
        body: the model; its mechanisms become Lightning's children with their hooks and logging.
        optimizer: ``name`` and fields of an optimizer.
        schedule: ``name`` and fields of a schedule.
        max_steps: optimizer steps of the whole run.
        targets_per_batch: nominal number of targets of one micro-batch on one device (batch size x length).
        token_bytes: (vocab_size,) bytes of each token, for bits per byte.
        label_names: of the labels that the targets are; () where the targets are tokens.
        label_weights: of each label in the loss of training (validation weighs all alike); None: all 1.
        extra_validation: names of the validation loaders after the first; their metrics carry the name in front.
    """

    def __init__(
        self,
        body: nn.Module,
        *,
        optimizer: Mapping[str, Any],
        schedule: Mapping[str, Any],
        max_steps: int,
        targets_per_batch: int,
        token_bytes: Tensor,
        label_names: Sequence[str] = (),
        label_weights: Sequence[float] | None = None,
        extra_validation: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.body: Any = body
        self.optimizer_config = dict(optimizer)
        self.schedule = build_schedule(schedule, max_steps)
        self.targets_per_batch = targets_per_batch
        self.validation_metrics = nn.ModuleDict(
            {p: LabelMetrics(label_names) if label_names else TokenMetrics(token_bytes)
             for p in ("main", *extra_validation)}
        )  # fmt: skip
        self.register_buffer(
            "label_weights", None if label_weights is None else torch.tensor(label_weights), persistent=False
        )
        self.record: StepRecord | None = None  # of the last completed optimizer step
        self.vitals: dict[str, float] = {}  # of the last validation
        self.validation: dict[str, float] = {}  # metrics of the last validation
        self.validated_at = -1  # optimizer step of the last validation
        self.last_val_loss = math.nan
        # Called with the record when the gradients of a step are complete, before they are applied.
        self.before_update: list[Callable[[StepRecord], None]] = []
        self._sums: Tensor | None = None
        self._collector: Vitals | None = None
        self._random_state: dict[str, Any] | None = None

    # -- mechanisms as Lightning components ---------------------------------------------------------------------

    @property
    def mechanisms(self) -> list[Mechanism]:
        return [m for m in getattr(self.body, "mechanisms", {}).values() if isinstance(m, Mechanism)]

    def setup(self, stage: str) -> None:
        for mechanism in self.mechanisms:
            mechanism.trainer = self.trainer

    def _forward_hook(self, name: str, *args: Any) -> None:
        for mechanism in self.mechanisms:
            if getattr(type(mechanism), name) is not getattr(lightning.LightningModule, name):
                mechanism._current_fx_name = name  # lets the mechanism call self.log inside its hook
                getattr(mechanism, name)(*args)
                mechanism._current_fx_name = None

    # -- training -----------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        logits, _ = self.body(batch["tokens"], starts=batch["starts"], samples=batch.get("samples"))
        targets = batch["targets"]
        nll = summed_nll(logits, targets, cast(Tensor | None, self.label_weights))
        count = (targets != IGNORED).sum()
        auxiliary = self._auxiliary_loss()
        if callable(observe := getattr(self.body, "observe_loss", None)):
            observe(nll.detach(), count)
        sums = torch.stack([nll.detach().double(), auxiliary.detach().double() * count, count.double()])
        self._sums = sums if self._sums is None else self._sums + sums
        total = nll if auxiliary.grad_fn is None else nll + auxiliary * count
        return total / self.targets_per_batch

    def _auxiliary_loss(self) -> Tensor:
        find = getattr(self.body, "auxiliary_loss", None)
        term = find() if callable(find) else None
        return torch.zeros((), device=self.device) if term is None else cast(Tensor, term)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """All micro-batches of this step are in: reduce their sums over ranks, normalise, update organism state."""
        assert self._sums is not None
        nll, auxiliary, count = self.reduce_sum(self._sums).tolist()
        self._sums = None
        nominal = self.targets_per_batch * self.trainer.accumulate_grad_batches * self.trainer.world_size
        if count not in (0, nominal):
            for parameter in self.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(nominal / count)
        self.record = StepRecord(
            step=self.trainer.global_step + 1,
            loss=nll / max(count, 1),
            auxiliary=auxiliary / max(count, 1),
            targets=int(count),
            lr=float(optimizer.param_groups[0]["lr"]),
        )
        commit = getattr(self.body, "commit_observations", None)
        if callable(commit) and math.isfinite(nll):
            commit(self.reduce_sum)
        self._forward_hook("on_before_optimizer_step", optimizer)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer | LightningOptimizer,
        gradient_clip_val: float | int | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Measure the norm of all gradients (it tells non-finite ones too) and clip it if the trainer asks for it."""
        assert self.record is not None
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if gradient_clip_val is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters(), float(gradient_clip_val), norm)
        self.record.grad_norm = float(norm)
        for check in self.before_update:
            check(self.record)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """The update, then what mechanisms change in the model besides (experts that split or merge)."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        restructure = getattr(self.body, "restructure", None)
        if callable(restructure):
            restructure(optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer)

    def reduce_sum(self, value: Tensor) -> Tensor:
        """The sum of ``value`` over all ranks."""
        if dist.is_available() and dist.is_initialized():
            value = value.clone()
            dist.all_reduce(value)
        return value

    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer(self.optimizer_config, self.body)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": LambdaLR(optimizer, self.schedule), "interval": "step"},
        }

    # -- validation ---------------------------------------------------------------------------------------------

    def on_validation_model_zero_grad(self) -> None:
        """Called before anything of a validation: its loaders draw numbers that training must not miss."""
        self._random_state = get_random_state()
        super().on_validation_model_zero_grad()

    @property
    def _metrics(self) -> list[TokenMetrics]:
        """One for each validation loader, in their order."""
        return cast(list[TokenMetrics], list(self.validation_metrics.values()))

    def on_validation_epoch_start(self) -> None:
        for metrics in self._metrics:
            metrics.reset()
        wanted = self.mechanisms or getattr(self.body, "reports_vitals", False)
        self._collector = Vitals() if wanted else None

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        # Vitals of the first batch stand for all: they cost about as much as the pass itself.
        vitals = self._collector if batch_idx == 0 and dataloader_idx == 0 else None
        logits, _ = self.body(batch["tokens"], starts=batch["starts"], vitals=vitals)
        targets = batch["targets"]
        self._metrics[dataloader_idx].update(summed_nll(logits, targets), logits, targets)

    def on_validation_epoch_end(self) -> None:
        prefixes = ("" if name == "main" else f"{name}_" for name in self.validation_metrics)
        self.validation = {
            f"{prefix}{name}": float(value)
            for prefix, metrics in zip(prefixes, self._metrics, strict=True)
            for name, value in metrics.compute().items()
        }
        self.validated_at = self.trainer.global_step
        self.last_val_loss = self.validation["loss"]
        means = self._collector.mean() if self._collector is not None else {}
        self._collector = None
        if means:
            ranks = self.trainer.world_size
            values = self.reduce_sum(torch.stack([v.double().to(self.device) for v in means.values()])) / ranks
            self.vitals = dict(zip(means, values.tolist(), strict=True))

    # -- what a resumed run continues ---------------------------------------------------------------------------

    def progress(self) -> dict[str, Any]:
        """The records of the last step and of the last validation, in plain types, for a checkpoint."""
        return {
            "vitals": dict(self.vitals),
            "validation": dict(self.validation),
            "validated_at": self.validated_at,
            "last_val_loss": self.last_val_loss,
            "record": None if self.record is None else dataclasses.asdict(self.record),
        }

    def load_progress(self, progress: Mapping[str, Any]) -> None:
        """Restore what :meth:`progress` returned."""
        for name in ("vitals", "validation", "validated_at", "last_val_loss"):
            setattr(self, name, progress[name])
        if (record := progress.get("record")) is not None:  # absent in checkpoints of earlier versions
            self.record = StepRecord(**record)

    # -- hooks that only the mechanisms need --------------------------------------------------------------------

    def on_fit_start(self) -> None:
        self._forward_hook("on_fit_start")

    def on_train_start(self) -> None:
        self._forward_hook("on_train_start")

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        self._forward_hook("on_train_batch_start", batch, batch_idx)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self._forward_hook("on_train_batch_end", outputs, batch, batch_idx)

    def on_validation_start(self) -> None:
        self._forward_hook("on_validation_start")

    def on_validation_end(self) -> None:
        self._forward_hook("on_validation_end")
        if self._random_state is not None:
            set_random_state(self._random_state)
            self._random_state = None

    def on_train_end(self) -> None:
        self._forward_hook("on_train_end")


def summed_nll(logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Sum over target tokens of -log p (nats), in float32 or better. logits (B, T, V), targets (B, T), weights (V,)."""
    if logits.dtype != torch.float64:
        logits = logits.float()
    return F.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), weight=weights, ignore_index=IGNORED, reduction="sum"
    )


def positive_int(value: Any, path: str, *, optional: bool = False) -> Any:
    """``value`` if it is an integer >= 1 (or None where optional).

    Raises:
        ConfigError: it is not.
    """
    if value is None and optional:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{path} = {value!r} is not valid: an integer >= 1{' or null' if optional else ''}")
    return value
