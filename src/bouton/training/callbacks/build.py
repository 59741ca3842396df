"""The callbacks of a run from its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback

from bouton.errors import ConfigError, suggest
from bouton.training.callbacks.checkpoint import Checkpointing
from bouton.training.callbacks.curriculum import FIELDS as CURRICULUM
from bouton.training.callbacks.curriculum import build_curriculum
from bouton.training.callbacks.early_stop import EarlyStop
from bouton.training.callbacks.hopeless import HopelessStop
from bouton.training.callbacks.media import Media
from bouton.training.callbacks.metrics import MetricsLogging
from bouton.training.callbacks.nonfinite import NonFiniteGuard
from bouton.training.callbacks.progress import ProgressBar
from bouton.training.callbacks.stop import StopControl, parse_max_time
from bouton.training.callbacks.throughput import Throughput
from bouton.training.module import positive_int

FIELDS: Mapping[str, tuple[str, ...]] = {
    "checkpoint": ("save_every", "save_best"),
    "early_stop": ("patience", "min_delta"),
    "hopeless": ("threshold", "confidence", "slack"),
    "curriculum": CURRICULUM,
    "nonfinite_guard": (),
    "throughput": ("mfu",),
    "progress": ("refresh_every",),
    "media": ("every", "tokens", "sample_tokens"),
}
_OPTIONAL = ("early_stop", "hopeless", "curriculum", "media")  # null leaves them out


def build_callbacks(
    config: Mapping[str, Any],
    trainer: Mapping[str, Any],
    *,
    folder: Path,
    resolved: str,
    facts: Mapping[str, Any],
    resume: Mapping[str, Any] | None,
    tokens_per_step: int,
    flops_per_token: float | None,
    precision: str,
    tokenizer: Any = None,
    seed: int = 0,
) -> list[Callback]:
    """All callbacks of one run, in the order in which Lightning calls them.

    Metrics come before checkpoints: a checkpoint must find the rows of its step in the loggers.

    Args:
        config: ``cfg.callbacks``.
        trainer: ``cfg.trainer``.
        folder: the run folder.
        resolved: the resolved configuration as YAML text.
        facts: see :class:`Checkpointing`.
        resume: the checkpoint to continue from.
        tokens_per_step: of the global batch.
        flops_per_token: of training; None where unknown.
        precision: Lightning's name of the precision.
        tokenizer, seed: of the run, for sample texts.

    Raises:
        ConfigError: an unknown field or a value out of range.
    """
    check_fields(config)
    log_every = positive_int(trainer["log_every"], "trainer.log_every")
    checkpoint, progress, early = config["checkpoint"], config["progress"], config["early_stop"]
    refresh = positive_int(progress["refresh_every"], "callbacks.progress.refresh_every", optional=True)
    callbacks: list[Callback] = [
        MetricsLogging(log_every),
        StopControl(parse_max_time(trainer["max_time"])),
        Throughput(
            tokens_per_step=tokens_per_step,
            flops_per_token=flops_per_token,
            log_every=log_every,
            mfu=bool(config["throughput"]["mfu"]),
            precision=precision,
        ),
    ]
    if early is not None:
        delta = early["min_delta"]
        if isinstance(delta, bool) or not isinstance(delta, int | float) or delta < 0:
            raise ConfigError(f"callbacks.early_stop.min_delta = {delta!r} is not valid: a number >= 0")
        callbacks.append(EarlyStop(positive_int(early["patience"], "callbacks.early_stop.patience"), float(delta)))
    if (rule := config["hopeless"]) is not None:
        callbacks.append(
            HopelessStop(*(_number(rule[name], f"callbacks.hopeless.{name}") for name in FIELDS["hopeless"]))
        )
    if (rule := config["curriculum"]) is not None:
        callbacks.append(build_curriculum(rule))
    if config["nonfinite_guard"]:
        callbacks.append(NonFiniteGuard(folder))
    if (media := config["media"]) is not None:
        callbacks.append(
            Media(
                folder,
                every=positive_int(media["every"], "callbacks.media.every"),
                tokens=positive_int(media["tokens"], "callbacks.media.tokens"),
                sample_tokens=positive_int(media["sample_tokens"], "callbacks.media.sample_tokens", optional=True),
                tokenizer=tokenizer,
                seed=seed,
            )
        )
    callbacks.append(
        Checkpointing(
            folder,
            config=resolved,
            facts=facts,
            save_every=positive_int(checkpoint["save_every"], "callbacks.checkpoint.save_every", optional=True),
            save_best=bool(checkpoint["save_best"]),
            resume=resume,
        )
    )
    if refresh is not None:
        callbacks.append(ProgressBar(refresh))
    return callbacks


def check_fields(config: Mapping[str, Any]) -> None:
    """Refuse unknown and missing fields of ``cfg.callbacks``."""
    for name, value in config.items():
        if name not in FIELDS:
            raise ConfigError(f"callbacks.{name} is unknown; {suggest(str(name), FIELDS)}")
        for field in value if isinstance(value, Mapping) else ():
            if field not in FIELDS[name]:
                raise ConfigError(f"callbacks.{name}.{field} is unknown; {suggest(str(field), FIELDS[name])}")
    for name, fields in FIELDS.items():
        if name not in config:
            raise ConfigError(f"callbacks.{name} is missing")
        if isinstance(config[name], Mapping):
            for field in fields:
                if field not in config[name]:
                    raise ConfigError(f"callbacks.{name}.{field} is missing")
        elif fields and not (name in _OPTIONAL and config[name] is None):
            raise ConfigError(f"callbacks.{name} = {config[name]!r} is not valid: needs {', '.join(fields)}")


def _number(value: Any, path: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{path} = {value!r} is not valid: a number")
    return float(value)
