"""What the kernels of flash-linear-attention lack to run under Triton's interpreter; a GPU has no use for it.

They are tuned by timing them, which takes a driver, and they convert the counters of their loops like tensors, which
the interpreter makes plain integers. One configuration, and integers that can be converted, are all they need.
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any


class _Counter(int):
    """A counter of a loop; its conversion to another integer type changes nothing."""

    def to(self, dtype: Any, **_: Any) -> _Counter:
        return self


def _range(*bounds: Any) -> Iterator[_Counter]:
    # A scalar is an array of one element, which NumPy no longer takes for a number; Triton 3.6 asks it to.
    numbers = (x.handle.data.item() if hasattr(x, "handle") else x for x in bounds)
    return map(_Counter, builtins.range(*numbers))


def prepare() -> None:
    """Fit all kernels of the package that have been imported."""
    tuner = sys.modules["triton.runtime.autotuner"].Autotuner
    for name, module in list(sys.modules.items()):
        if name.startswith("fla.") and (tuned := _tuned(module, tuner)):
            for kernel in tuned:
                kernel.configs = kernel.configs[:1]
            # The interpreter runs the Python function itself, which looks names up in its module first.
            vars(module)["range"] = _range


def _tuned(module: ModuleType, tuner: type) -> list[Any]:
    """The tuners around the kernels of a module; other decorators may be wrapped around them."""
    found = []
    for item in list(vars(module).values()):
        while hasattr(item, "fn") and type(item).__module__.partition(".")[0] in ("triton", "fla"):
            if isinstance(item, tuner):
                found.append(item)
            item = item.fn
    return found
