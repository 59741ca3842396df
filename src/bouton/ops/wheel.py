"""The compiled CPU kernels of the wheel ``bouton-kernels``: are they here, and do they have what an op needs?"""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType

WHEEL = "bouton_kernels"


@cache
def _load() -> ModuleType | str:
    try:
        return importlib.import_module(WHEEL)
    except ImportError as error:
        return f"the wheel '{WHEEL.replace('_', '-')}' is not installed (pip install ./kernels_rs): {error}"


def why_not(function: str) -> str | None:
    """Why the compiled ``function`` cannot be called on this machine; None if it can."""
    found = _load()
    if isinstance(found, str):
        return found
    if not hasattr(found, function):
        return f"the installed wheel is older than this op: it has no '{function}' (pip install ./kernels_rs)"
    return None


def kernels() -> ModuleType:
    """The compiled module.

    Raises:
        ImportError: it is not installed.
    """
    found = _load()
    if isinstance(found, str):
        raise ImportError(found)
    return found
