"""Evaluation tasks beside the loss: ``bouton.evaluation.evaluate(run, tasks=["calibration"])``.

A task is one file under ``tasks/``: a class with options and a ``measure(subject, options)`` that returns named
numbers, each mean or proportion with its standard error and 95 % interval (``x``, ``x_se``, ``x_low``, ``x_high``).

The public names are loaded on first use: reading results needs neither torch nor Lightning.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bouton.evaluation.base import Result as Result
    from bouton.evaluation.base import Task as Task
    from bouton.evaluation.registry import register as register
    from bouton.evaluation.runner import evaluate as evaluate
    from bouton.evaluation.store import load_results as load_results

_PUBLIC = {
    "Result": "base",
    "Task": "base",
    "evaluate": "runner",
    "load_results": "store",
    "register": "registry",
}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'bouton.evaluation' has no attribute {name!r}")
    return getattr(importlib.import_module(f"bouton.evaluation.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
