"""``evaluate(run, tasks=[...])``: measure, write down, and do not measure again what is written down."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bouton.errors import ConfigError, EvaluationError, suggest
from bouton.evaluation import registry
from bouton.evaluation.base import Task
from bouton.evaluation.store import file_name, read_result, results_folder, save_result
from bouton.evaluation.subject import PRECISIONS, Subject, fingerprint
from bouton.runs import Run, load

log = logging.getLogger("bouton.evaluation")

Options = Mapping[str, Mapping[str, Any]]


def evaluate(
    run: Run | str | Path,
    tasks: Sequence[str] | str | None = None,
    options: Options | None = None,
    *,
    again: bool = False,
    precision: str = "run",
    data_path: str | None = None,
    cache_dir: str | None = None,
    progress: bool = False,
    report: Callable[[str, Mapping[str, Any], bool], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Measure a run with several tasks and write each result into its folder.

    A task that has been measured with the same weights, options and precision (and, where it is about speed, on the
    same machine) is not measured again.

    Args:
        run: a run, or the path of its folder.
        tasks: names; None or ``all``: every task that applies to this run.
        options: task -> its options, for instance ``{"needle": {"lengths": [64, 128]}}``.
        again: measure in any case.
        precision: ``run``: as its own validation computed; ``float32``.
        data_path: where the run's text is now, if it has moved.
        cache_dir: where the token files are now.
        progress: bars on the terminal.
        report: called after each task with its label, its result, and whether it was measured now.

    Returns:
        Label -> result: ``numbers`` (flat), ``tables``, ``notes``, ``figures`` and how they were made.

    Raises:
        ConfigError: an unknown task or option.
        EvaluationError: a task that was asked for by name does not apply to this run.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"precision = {precision!r} is unknown: {suggest(precision, PRECISIONS)}")
    subject = Subject(
        load(run) if isinstance(run, str | Path) else run,
        precision=precision,
        data_path=data_path,
        cache_dir=cache_dir,
        progress=progress,
    )
    every = tasks is None or tasks == "all" or list(tasks) == ["all"]
    labels = [n for n, t in registry.tasks().items() if not t.argument_doc] if every else _labels(tasks)
    made = {label: registry.make(label) for label in labels}
    chosen = _options(made, options or {})
    results: dict[str, dict[str, Any]] = {}
    for label, task in list(made.items()):
        try:
            task.check(subject)
        except EvaluationError as refusal:
            if not every:
                raise
            log.info("%s: %s", label, refusal)
            del made[label]
    weights = fingerprint(subject.model)
    for label, task in made.items():
        try:
            results[label], fresh = _one(subject, label, task, chosen[label], weights, again)
        except EvaluationError as refusal:
            if not every:
                raise
            log.info("%s: %s", label, refusal)
            continue
        if report is not None:
            report(label, results[label], fresh)
    return results


def _labels(tasks: Sequence[str] | str | None) -> list[str]:
    names = [tasks] if isinstance(tasks, str) else list(tasks or ())
    if not names:
        raise ConfigError(f"tasks = [] names no task: {suggest('', registry.tasks())}")
    return list(dict.fromkeys(names))


def _options(made: Mapping[str, Task], given: Options) -> dict[str, Any]:
    """The options of every task, checked; those of a task that is not measured are a mistake."""
    for name in given:
        if name not in {task.name for task in made.values()}:
            raise ConfigError(f"options of '{name}' are given, but it is not among the tasks {', '.join(made)}")
    return {label: task.Options.from_config(given.get(task.name, {}), task.name) for label, task in made.items()}


def _one(
    subject: Subject, label: str, task: Task, options: Any, weights: str, again: bool
) -> tuple[dict[str, Any], bool]:
    from bouton.training.random_state import preserved_globals

    folder = results_folder(subject.run.folder, subject.run.checkpoint_name)
    path = folder / f"{file_name(label)}.json"
    identity: dict[str, Any] = {
        "options": _plain(asdict(options)),
        "weights": weights,
        "precision": subject.precision_name,
    }
    if task.machine_bound:
        identity["machine"] = _machine(subject)
    known = read_result(path)
    if known is not None and not again:
        changed = [name for name, value in identity.items() if known.get(name) != value]
        if not changed:
            return known, False
        log.info("%s: measured again, because of other %s", label, " and ".join(changed))
    begin = time.perf_counter()
    modes = [(module, module.training) for module in subject.model.modules()]
    try:
        with preserved_globals():
            subject.model.eval()
            result = task.measure(subject, options)
    finally:
        for module, training in modes:
            module.training = training
    if fingerprint(subject.model) != weights:
        raise RuntimeError(f"task {label} has changed the model: evaluation must leave every tensor as it is")
    facts = {
        **identity,
        "checkpoint": str(subject.run.checkpoint_name),
        "device": str(subject.device),
        "kernels": subject.run.kernels,
        "seconds": time.perf_counter() - begin,
    }
    result.numbers = {name: float(value) for name, value in result.numbers.items()}
    save_result(folder, label, result, facts)
    written = read_result(path)
    assert written is not None
    return written, True


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    """Options as JSON gives them back."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}


def _machine(subject: Subject) -> dict[str, Any]:
    import torch

    from bouton.training.environment import machine

    facts = machine()
    name = facts["cpu"] if subject.device.type == "cpu" else torch.cuda.get_device_name(subject.device)
    return {"name": name, "threads": torch.get_num_threads(), "kernels": subject.run.kernels}
