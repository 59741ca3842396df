"""Callbacks find each other through the trainer."""

from __future__ import annotations

from typing import Any, TypeVar, cast

import lightning
from lightning.pytorch.callbacks import Callback

C = TypeVar("C", bound=Callback)


def callbacks_of(trainer: lightning.Trainer) -> list[Callback]:
    """All callbacks of a trainer (the attribute is set at run time, type checkers do not see it)."""
    return list(cast(Any, trainer).callbacks)


def find(trainer: lightning.Trainer, kind: type[C]) -> C | None:
    """The first callback of a class, None if there is none."""
    return next((c for c in callbacks_of(trainer) if isinstance(c, kind)), None)
