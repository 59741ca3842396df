"""The registry of tasks: every module under ``tasks/`` registers one."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from typing import TypeVar

from bouton.errors import ConfigError, suggest
from bouton.evaluation.base import Task

_registry: dict[str, type[Task]] = {}
T = TypeVar("T", bound=type[Task])


def register(cls: T) -> T:
    """Class decorator that makes a task known under its ``name``.

    Raises:
        ConfigError: the name is unusable, or taken by another class.
    """
    name = getattr(cls, "name", "")
    if not name.isidentifier() or name == "all":
        raise ConfigError(f"{cls.__qualname__}.name = {name!r} is not valid: use a Python identifier other than 'all'")
    known = _registry.get(name)
    if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ConfigError(f"task '{name}' is defined twice: in {known.__module__} and in {cls.__module__}")
    _registry[name] = cls
    return cls


def tasks() -> dict[str, type[Task]]:
    """All tasks: name -> class, sorted by name."""
    package = importlib.import_module("bouton.evaluation.tasks")
    for module in pkgutil.iter_modules(package.__path__):
        if not module.name.startswith("_"):
            importlib.import_module(f"bouton.evaluation.tasks.{module.name}")
    return dict(sorted(_registry.items()))


def make(label: str) -> Task:
    """The task that ``name`` or ``name:argument`` stands for.

    Raises:
        ConfigError: there is no such task, or it takes no argument, or it needs one.
    """
    name, _, argument = label.partition(":")
    known = tasks()
    if name not in known:
        raise ConfigError(f"task '{name}' is unknown: {suggest(name, known)}")
    cls = known[name]
    if bool(argument) != bool(cls.argument_doc):
        need = f"takes {cls.argument_doc}: {name}:..." if cls.argument_doc else "takes no argument"
        raise ConfigError(f"task '{label}' is not valid: {name} {need}")
    return cls(argument)


def headline(task: str, numbers: Mapping[str, float]) -> Sequence[str]:
    """The numbers of a task that are worth showing; all but errors and bounds where the task names none."""
    named = [name for name in tasks()[task.partition(":")[0]].headline if name in numbers]
    return named or [name for name in numbers if not _beside(name, numbers)]


def _beside(name: str, numbers: Mapping[str, float]) -> bool:
    """Whether a number is the error or a bound of another one."""
    return any(name.endswith(tail) and name.removesuffix(tail) in numbers for tail in ("_se", "_low", "_high"))
