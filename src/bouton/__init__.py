"""Bouton: compose biologically inspired mechanisms into neural networks, train them, and measure what they earn.

The public names are loaded on first use, so that ``import bouton.ops`` needs torch alone (a kernel can be
tested on a bare GPU machine) and ``bouton --help`` does not pay for Lightning.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# After each of its loops torch's OpenMP (GNU) would keep its threads spinning for some milliseconds, in which the
# threads of the compiled kernels share their cores with them. It reads this once, when torch is loaded; what the user
# has set stands.
if "torch" not in sys.modules and not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "3000"  # about 0.05 ms

_PUBLIC = {
    "build": "bouton.models.build",
    "compose": "bouton.config",
    "evidence": "bouton.evidence",
    "load": "bouton.runs",
    "mechanisms": "bouton.mechanisms",
}

if TYPE_CHECKING:
    from bouton import evidence as evidence
    from bouton import mechanisms as mechanisms
    from bouton.config import compose as compose
    from bouton.models.build import build as build
    from bouton.runs import load as load


def __getattr__(name: str) -> Any:
    module = _PUBLIC.get(name)
    if module is None:
        raise AttributeError(f"module 'bouton' has no attribute {name!r}")
    loaded = importlib.import_module(module)
    # `bouton.mechanisms` is a callable package, `bouton.evidence` a package; the others are functions of their module.
    return loaded if module == f"bouton.{name}" else getattr(loaded, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
