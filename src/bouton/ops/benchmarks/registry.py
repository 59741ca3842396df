"""The cases of all ops, found as the modules of :mod:`bouton.ops.benchmarks.cases`."""

from __future__ import annotations

import importlib
import pkgutil

from bouton.errors import KernelError, suggest
from bouton.ops.benchmarks import cases as package
from bouton.ops.benchmarks.case import SHAPES, Case


def ops() -> list[str]:
    """Names of the ops that have cases."""
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def cases(op: str | None = None, device: str = "cpu", shapes: str = "issue") -> list[Case]:
    """The cases of ``op`` (None: of all ops) for a device type.

    Args:
        shapes: "issue": the sizes that the targets name; "sweep": lengths; "all": both and further variants;
            "small": sizes that only show that everything runs.

    Raises:
        KernelError: an unknown op or word.
    """
    if op is not None and op not in ops():
        raise KernelError(f"op = '{op}' has no benchmark: {suggest(op, ops())}")
    if shapes not in SHAPES:
        raise KernelError(f"shapes = '{shapes}' is unknown: {suggest(shapes, SHAPES)}")
    found: dict[tuple[str, str], Case] = {}
    for name in ops() if op is None else [op]:
        module = importlib.import_module(f"{package.__name__}.{name}")
        for case in module.cases(device, shapes):
            # A sweep may pass through a size that a target names too: measured once, with that one's peers.
            found.setdefault((case.op, case.name), case)
    return list(found.values())
