"""``trainer.devices=N``: a job runs itself again under torch's elastic launcher, one process per device.

Lightning's own launcher would replay the command line in each process: under a Hydra sweep that repeats the sweep, and
under joblib there is no command line to replay. Here the job hands its overrides to N fresh processes that work in its
run folder, waits, and returns what rank 0 wrote. To Hydra's launchers and sweepers it looks like any other job.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf

from bouton import errors
from bouton.config.messages import explain, one_line

# Set in the processes that `relaunch` starts: the process that must outlive them.
PARENT = "BOUTON_PARENT_PID"
# What the user had in HYDRA_FULL_ERROR; the job itself always has errors raised.
FULL_ERROR_ASKED = "BOUTON_FULL_ERROR_ASKED"
_EXCHANGE = ".elastic"
_GRACE = 40.0  # seconds for an orderly end; the agent gives its workers 30
_RENDEZVOUS = ("MASTER_ADDR", "MASTER_PORT", "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK")
_PASSED_ON = ("hydra.searchpath", "hydra.verbose", "hydra/job_logging", "hydra.job_logging", "hydra.job.name")


def inside() -> bool:
    """Whether this process is one of several that torch's elastic launcher started, here or by the user's torchrun."""
    return "TORCHELASTIC_RUN_ID" in os.environ and "RANK" in os.environ and "WORLD_SIZE" in os.environ


def supervised() -> bool:
    """Whether :func:`relaunch` started this process and will report its errors."""
    return inside() and PARENT in os.environ


def device_count(trainer: Mapping[str, Any] | DictConfig) -> int:
    """How many processes ``trainer.devices`` on ``trainer.accelerator`` means on this machine.

    Raises:
        ConfigError: not a positive number, or more than the machine has.
    """
    asked = trainer.get("devices", 1)
    kind, available = _available(str(trainer.get("accelerator") or "auto"))
    if isinstance(asked, ListConfig | list | tuple):
        count = len(asked)
        if available and len({index for index in asked if index in range(available)}) < count:
            raise errors.ConfigError(
                f"trainer.devices = {list(asked)} is not valid: this machine has the indices 0 to {available - 1}, "
                f"each can be named once"
            )
    elif asked in ("auto", None, -1, "-1"):
        count = 1 if kind == "CPU core" else max(available, 1)
    else:
        try:
            count = int(str(asked))
        except ValueError:
            count = 0
    if count < 1:
        raise errors.ConfigError(f"trainer.devices = {asked!r} is not valid: a number >= 1, a list of indices, or auto")
    if count > available:
        there = f"{available or 'no'} {kind}{'' if available == 1 else 's'}"
        raise errors.ConfigError(f"trainer.devices = {count} is too many: this machine has {there}")
    return count


def relaunch(cfg: DictConfig) -> float:
    """Run this Hydra job in ``trainer.devices`` processes and return rank 0's objective.

    Raises:
        BoutonError: a process failed; the message is that process's own.
    """
    settings = HydraConfig.get()
    folder = Path(settings.runtime.output_dir)
    exchange = folder / _EXCHANGE
    shutil.rmtree(exchange, ignore_errors=True)
    exchange.mkdir(parents=True)
    count = device_count(cfg.trainer)
    command = [sys.executable, "-m", "bouton.config.agent", str(count), str(exchange), *_arguments(settings, folder)]
    try:
        code = _supervise(command, _environment(count, cfg.trainer))
        if code != 0:
            raise _failure(exchange, code)
        return float(json.loads((exchange / "result.json").read_text())["objective"])
    except KeyboardInterrupt:
        error = _failure(exchange, 1)
        if isinstance(error, errors.InterruptedRunError):
            raise error from None
        raise
    finally:
        shutil.rmtree(exchange, ignore_errors=True)


def run_worker(run: Callable[[], float], folder: Path) -> float:
    """In a worker: call ``run``, and leave its objective or its error where :func:`relaunch` looks for them."""
    if not supervised():
        return run()
    end_with_parent(lambda: os._exit(1))
    if os.environ.get("LOCAL_RANK", "0") != "0":
        _silence_logging()
    exchange = folder / _EXCHANGE
    rank = os.environ["RANK"]
    try:
        value = run()
    except Exception as error:
        message = explain(error) or f"{type(error).__name__}: {one_line(str(error))}"
        record = {"kind": type(error).__name__, "message": message, "time": time.time()}
        _write(exchange / f"failure-{rank}.json", record)
        raise
    if rank == "0":
        _write(exchange / "result.json", {"objective": value})
    return value


def end_with_parent(end: Callable[[], None]) -> None:
    """Call ``end`` from a thread as soon as the process named in the environment is no longer our parent."""
    parent = int(os.environ[PARENT])

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        end()

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def _available(accelerator: str) -> tuple[str, int]:
    if accelerator == "mps":
        return "GPU", 1
    if accelerator != "cpu":
        import torch  # seconds, so not for a CPU

        if torch.cuda.is_available() or accelerator == "cuda":
            return "CUDA device", torch.cuda.device_count()
        if accelerator == "gpu":
            return "GPU", int(torch.backends.mps.is_available())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return "CPU core", cores


def _arguments(settings: Any, folder: Path) -> list[str]:
    """The words after ``bouton train`` that compose this job's configuration in this job's folder."""
    words = ["--config-name", str(settings.job.config_name)]
    for source in settings.runtime.config_sources:
        if source.provider == "command-line":
            words += ["--config-dir", str(source.path)]
    words += list(settings.overrides.task)
    words += [word for word in settings.overrides.hydra if word.lstrip("+~").split("=")[0].startswith(_PASSED_ON)]
    # A sweep numbers its jobs; what refers to the number must find it again.
    numbering = [key for key in ("num", "id") if not OmegaConf.is_missing(settings.job, key)]
    words += [f"hydra.job.{key}={settings.job[key]}" for key in numbering]
    # `=` and `,` occur in folders, and an experiment may set the mode: the worker is always a single run.
    quoted = str(folder).replace('"', '\\"')
    return [*words, "hydra.mode=RUN", f'hydra.run.dir="{quoted}"', "hydra.output_subdir=null"]


def _environment(count: int, trainer: Mapping[str, Any] | DictConfig) -> dict[str, str]:
    env = {
        key: value
        for key, value in os.environ.items()
        if key not in _RENDEZVOUS and not key.startswith(("TORCHELASTIC_", "GROUP_", "ROLE_"))
    }
    env.pop("HYDRA_FULL_ERROR", None)
    if env.pop(FULL_ERROR_ASKED, ""):
        env["HYDRA_FULL_ERROR"] = os.environ[FULL_ERROR_ASKED]
    env[PARENT] = str(os.getpid())
    asked = trainer.get("devices")
    on_gpu = _available(str(trainer.get("accelerator") or "auto"))[0] == "CUDA device"
    if on_gpu and isinstance(asked, ListConfig | list | tuple):  # the workers take the first GPUs that they see
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        env["CUDA_VISIBLE_DEVICES"] = ",".join(visible[i] if visible != [""] else str(i) for i in asked)
    # torchrun's default of one thread would leave cores idle where there are more cores than devices.
    env.setdefault("OMP_NUM_THREADS", str(max(1, _available("cpu")[1] // count)))
    return env


def _supervise(command: list[str], env: dict[str, str]) -> int:
    """Run ``command`` to its end; whatever ends this process ends it as well."""
    # In a session of its own it does not see a terminal's Ctrl-C: one signal asks the workers to save and leave, and a
    # second one would cut that short.
    process = subprocess.Popen(command, env=env, start_new_session=True)
    try:
        with _terminate_as_exit():
            return process.wait()
    except BaseException:
        process.terminate()
        raise
    finally:
        try:
            process.wait(timeout=_GRACE)
        except BaseException:
            process.kill()  # its workers notice within a second
            raise


@contextmanager
def _terminate_as_exit() -> Iterator[None]:
    """SIGTERM raises SystemExit, so that the processes below are ended before this one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _failure(exchange: Path, code: int) -> BaseException:
    """The first error that a worker recorded: the others are usually its consequence."""
    if code == 128 + signal.SIGINT:
        return KeyboardInterrupt()
    records = [json.loads(path.read_text()) for path in exchange.glob("failure-*.json")]
    if not records:
        path = exchange / "agent.json"
        reason = json.loads(path.read_text())["message"] if path.exists() else f"the launcher ended with code {code}"
        return errors.TrainingError(f"{reason} without an error message (killed, or out of memory?)")
    first = min(records, key=lambda record: float(record["time"]))
    kind = getattr(errors, first["kind"], None)
    if not (isinstance(kind, type) and issubclass(kind, errors.BoutonError)):
        kind = errors.TrainingError
    return kind(first["message"])


def _write(path: Path, record: Mapping[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(record))
    partial.replace(path)


def _silence_logging() -> None:
    import logging

    root = logging.getLogger()
    root.handlers.clear()
    root.addHandler(logging.NullHandler())
