"""Lightning's Trainer from ``cfg.trainer``."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy

from bouton.errors import ConfigError, suggest
from bouton.training.checkpoints import AtomicCheckpointIO
from bouton.training.module import positive_int

FIELDS = (
    "accelerator",
    "devices",
    "precision",
    "max_steps",
    "max_time",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "val_every",
    "val_batches",
    "log_every",
    "compile",
    "deterministic",
)
PRECISIONS = ("32-true", "64-true", "bf16-mixed", "bf16-true")
_NEVER = 10**9  # validation by count never comes; the last step always validates


def check_trainer(config: Mapping[str, Any]) -> None:
    """Refuse unknown fields and invalid values of ``cfg.trainer``.

    Raises:
        ConfigError: names the field.
    """
    for name in config:
        if name not in FIELDS:
            raise ConfigError(f"trainer.{name} is unknown; {suggest(str(name), FIELDS)}")
    for name in FIELDS:
        if name not in config:
            raise ConfigError(f"trainer.{name} is missing")
    for name in ("max_steps", "accumulate_grad_batches", "log_every"):
        positive_int(config[name], f"trainer.{name}")
    for name in ("val_every", "val_batches"):
        positive_int(config[name], f"trainer.{name}", optional=True)
    clip = config["gradient_clip_val"]
    if clip is not None and (isinstance(clip, bool) or not isinstance(clip, int | float) or not clip > 0):
        raise ConfigError(f"trainer.gradient_clip_val = {clip!r} is not valid: a number > 0, or null")
    if config["precision"] not in ("auto", *PRECISIONS):
        hint = suggest(str(config["precision"]), ("auto", *PRECISIONS))
        raise ConfigError(f"trainer.precision = {config['precision']!r} is unknown; {hint}")
    accelerators = ("auto", "cpu", "gpu", "cuda")
    if config["accelerator"] not in accelerators:
        hint = suggest(str(config["accelerator"]), accelerators)
        raise ConfigError(f"trainer.accelerator = {config['accelerator']!r} is unknown; {hint}")
    if config["accelerator"] in ("gpu", "cuda") and not torch.cuda.is_available():
        raise ConfigError(
            f"trainer.accelerator = {config['accelerator']}: this machine has no usable GPU; use cpu or auto"
        )


def on_gpu(config: Mapping[str, Any]) -> bool:
    """Whether ``cfg.trainer`` means a GPU on this machine."""
    return config["accelerator"] != "cpu" and torch.cuda.is_available()


def precision(config: Mapping[str, Any]) -> str:
    """Lightning's name of the precision, ``auto`` resolved."""
    if config["precision"] != "auto":
        return str(config["precision"])
    return "bf16-mixed" if on_gpu(config) else "32-true"


def build_trainer(
    config: Mapping[str, Any], *, folder: Path, callbacks: Sequence[Callback], loggers: Sequence[Logger], elastic: bool
) -> lightning.Trainer:
    """The Trainer of one run.

    Args:
        config: ``cfg.trainer``.
        folder: the run folder.
        callbacks: everything that happens around the steps; Lightning's own are off.
        loggers: where metrics go.
        elastic: this process is one of several that an elastic launcher started.
    """
    accumulate = config["accumulate_grad_batches"]
    gpu = on_gpu(config)
    parallel: dict[str, Any]
    if elastic:
        local = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
        parallel = {
            "devices": local,
            "num_nodes": int(os.environ["WORLD_SIZE"]) // local,
            # Organism state is updated alike on all ranks from reduced sums: sending buffers around would only cost.
            "strategy": DDPStrategy(
                process_group_backend="nccl" if gpu else "gloo",
                find_unused_parameters=False,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
            ),
        }
        environment: Any = TorchElasticEnvironment()
    else:
        devices = config["devices"]
        parallel = {"devices": list(devices) if gpu and isinstance(devices, list | tuple) else 1, "strategy": "auto"}
        environment = LightningEnvironment()  # a job inside SLURM or MPI is still one process
    return lightning.Trainer(
        accelerator="cuda" if gpu else "cpu",
        precision=precision(config),  # type: ignore[arg-type]
        max_steps=config["max_steps"],
        max_epochs=-1,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=config["gradient_clip_val"],
        val_check_interval=config["val_every"] * accumulate if config["val_every"] else _NEVER,
        check_val_every_n_epoch=None,
        limit_val_batches=config["val_batches"] or 1.0,
        num_sanity_val_steps=0,
        log_every_n_steps=config["log_every"],
        deterministic=bool(config["deterministic"]),
        callbacks=list(callbacks),
        logger=list(loggers) or False,
        plugins=[AtomicCheckpointIO(), environment],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
        **parallel,
    )


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence Lightning's remarks on choices that were made on purpose; warnings of substance still come through."""
    names = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        for message in (
            ".*does not have many workers.*",
            ".*GPU available but not used.*",
            ".*LeafSpec.*",
            ".*tensorboardX.*",
            ".*`broadcast_buffers` is deprecated.*",  # its successor is unknown to older versions of torch
            ".*smaller than the logging interval.*",
            ".*lr_scheduler.step.*",
        ):
            warnings.filterwarnings("ignore", message)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
