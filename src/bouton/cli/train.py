"""``python train.py`` and ``bouton train``: one Hydra job is one training run.

With more than one device the job runs itself again under torch's elastic launcher (:mod:`bouton.config.elastic`), so
that single runs, grids, every Hydra launcher and every sweeper see one job that returns one number.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from bouton.cli.guard import FULL_ERROR, guard
from bouton.config import conf_dir, devices, elastic, finish
from bouton.config.composition import check_lists
from bouton.config.inherit import inherit
from bouton.errors import BoutonError, InterruptedRunError


class _Abort(BaseException):
    """Carries the error of a single run past Hydra, which would print a second line for an ``Exception``."""


def main(arguments: list[str] | None = None) -> int:
    """Train with Hydra ``arguments`` (those of the command line by default); returns the exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    return guard(lambda: _run(words), quiet=elastic.supervised())


def job(cfg: DictConfig) -> float:
    """One run: the objective that a sweeper minimises, i.e. the final validation loss in nats per token.

    Raises:
        BoutonError: the configuration, the data or the machine do not allow it.
    """
    settings = HydraConfig.get()
    cfg.run_dir = str(settings.runtime.output_dir)
    try:
        finish(cfg)
        with devices.for_job(cfg.trainer) if settings.mode != RunMode.RUN else nullcontext():
            objective = _train(cfg)
        _discard_if_unused(Path(cfg.run_dir))
        return objective
    except InterruptedRunError as stop:
        # Not an Exception: Hydra would take the job for failed and go on with the next one.
        raise KeyboardInterrupt(str(stop)) from stop
    except BoutonError as error:
        if settings.mode != RunMode.RUN:
            raise
        _discard_if_unused(Path(cfg.run_dir))
        raise _Abort from error


def _train(cfg: DictConfig) -> float:
    if elastic.inside():
        return elastic.run_worker(lambda: _train_here(cfg), Path(cfg.run_dir))
    if elastic.device_count(cfg.trainer) > 1 and not cfg.get("domain"):
        return elastic.relaunch(cfg)
    return _train_here(cfg)


def _train_here(cfg: DictConfig) -> float:
    if cfg.get("domain"):
        from bouton.domains.run import run

        return run(cfg)
    from bouton.training import train  # Lightning takes seconds to import, `--help` should not

    return float(train(cfg))


def _run(words: list[str]) -> int:
    check_lists(words)
    words = inherit(words)
    # argparse loses overrides that stand on both sides of a flag.
    multirun = [word for word in words if word in ("-m", "--multirun")]
    words = [*multirun, *(word for word in words if word not in multirun)]
    with _command_line(words), _raised_errors():
        try:
            hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")(job)()
        except _Abort as abort:
            raise abort.__cause__ or abort from None
    return 0


def _discard_if_unused(folder: Path) -> None:
    """Remove a run folder with nothing but Hydra's own files: no run started there, or it went on in an older one."""
    if not elastic.inside() and all(entry.name == ".hydra" or entry.suffix == ".log" for entry in folder.iterdir()):
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _command_line(words: list[str]) -> Iterator[None]:
    """Hydra reads ``sys.argv``."""
    saved = sys.argv
    sys.argv = [saved[0], *words]
    try:
        yield
    finally:
        sys.argv = saved


@contextmanager
def _raised_errors() -> Iterator[None]:
    """Let Hydra raise its errors instead of printing them and exiting; what the user asked for stays known."""
    asked = os.environ.get(FULL_ERROR)
    os.environ[FULL_ERROR] = "1"
    os.environ[elastic.FULL_ERROR_ASKED] = asked or ""
    try:
        yield
    finally:
        del os.environ[elastic.FULL_ERROR_ASKED]
        if asked is None:
            del os.environ[FULL_ERROR]
        else:
            os.environ[FULL_ERROR] = asked
