"""CSV always; TensorBoard and Weights & Biases where asked for, continued by a resume and ended with every run."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from lightning.pytorch.loggers import Logger

from bouton.errors import ConfigError, suggest
from bouton.training.csv_logger import CsvLogger
from bouton.training.module import positive_int

FIELDS: Mapping[str, tuple[str, ...]] = {
    "csv": (),
    "tensorboard": ("flush_secs",),
    "wandb": ("project", "entity", "group", "tags", "mode"),
}


def build_loggers(
    config: Mapping[str, Any], *, folder: Path, resume_step: int | None, resolved: Mapping[str, Any], main: bool
) -> list[Logger]:
    """The loggers of ``cfg.logger`` (name -> options).

    Args:
        folder: the run folder.
        resume_step: optimizer step of the checkpoint that the run continues; None for a new run.
        resolved: the resolved configuration, shown by dashboards.
        main: whether this process is rank 0; others get no logger.

    Raises:
        ConfigError: an unknown logger or field.
    """
    for name, options in config.items():
        if name not in FIELDS:
            raise ConfigError(f"logger.{name} is unknown; {suggest(str(name), FIELDS)}")
        for field in options or {}:
            if field not in FIELDS[name]:
                raise ConfigError(f"logger.{name}.{field} is unknown; {suggest(str(field), FIELDS[name])}")
    if not main:
        return []
    csv = CsvLogger(folder, resume_step)
    csv.open()
    loggers: list[Logger] = [csv]
    if (options := config.get("tensorboard")) is not None:
        from lightning.pytorch.loggers import TensorBoardLogger

        writer: dict[str, Any] = {"flush_secs": positive_int(options["flush_secs"], "logger.tensorboard.flush_secs")}
        if resume_step is not None:
            writer["purge_step"] = resume_step + 1
        loggers.append(TensorBoardLogger(folder / "tensorboard", name="", version="", **writer))
    if (options := config.get("wandb")) is not None:
        loggers.append(_wandb(options, folder, resolved))
    return loggers


def wandb_mode(asked: str | None) -> str:
    """``online`` where an API key is set (or stored by ``wandb login``), otherwise ``offline``, unless asked for."""
    if asked is not None:
        if asked not in ("online", "offline"):
            raise ConfigError(f"logger.wandb.mode = '{asked}' is unknown; {suggest(asked, ('online', 'offline'))}")
        return asked
    if os.environ.get("WANDB_MODE") in ("online", "offline"):
        return os.environ["WANDB_MODE"]
    stored = any("api.wandb.ai" in _read(Path.home() / name) for name in (".netrc", "_netrc"))
    return "online" if os.environ.get("WANDB_API_KEY") or stored else "offline"


def _wandb(options: Mapping[str, Any], folder: Path, resolved: Mapping[str, Any]) -> Logger:
    from lightning.pytorch.loggers import WandbLogger

    # A resumed run continues its dashboard: the same folder gives the same id.
    identity = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]
    return WandbLogger(
        name=folder.name,
        save_dir=folder,
        id=identity,
        resume="allow",
        project=options["project"],
        entity=options["entity"],
        group=options["group"],
        tags=list(options["tags"] or []),
        offline=wandb_mode(options["mode"]) == "offline",
        config=dict(resolved),
        reinit="finish_previous",
    )


def log_pictures(loggers: list[Logger], files: Mapping[str, Path], step: int) -> None:
    """Show PNG ``files`` (``mechanism/name`` -> path) under ``media/mechanism/name`` in the loggers that can."""
    for logger in loggers:
        kind = type(logger).__name__
        for name, path in files.items():
            if kind == "WandbLogger":
                cast(Any, logger).log_image(f"media/{name}", [str(path)], step=step)
            elif kind == "TensorBoardLogger":
                from matplotlib.image import imread

                cast(Any, logger).experiment.add_image(f"media/{name}", imread(path), step, dataformats="HWC")


def log_sample(loggers: list[Logger], text: str, step: int) -> None:
    """Show a sample text under ``samples/text`` in the loggers that can."""
    for logger in loggers:
        kind = type(logger).__name__
        if kind == "WandbLogger":
            cast(Any, logger).log_text("samples/text", columns=["step", "text"], data=[[str(step), text]], step=step)
        elif kind == "TensorBoardLogger":
            indented = "\n".join("    " + line for line in text.splitlines())  # Markdown's verbatim text
            cast(Any, logger).experiment.add_text("samples/text", indented, step)


@contextlib.contextmanager
def finished(loggers: list[Logger]) -> Iterator[None]:
    """Close all loggers at exit, a failed run as failed, so that the next run in this process begins its own."""
    status = "failed"
    try:
        yield
        status = "success"
    finally:
        for logger in loggers:
            logger.finalize(status)
            if type(logger).__name__ == "WandbLogger":
                import wandb

                wandb.finish(exit_code=0 if status == "success" else 1)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
