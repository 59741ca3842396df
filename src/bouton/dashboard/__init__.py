"""The dashboard: panels defined once in code, shown as one local HTML page or as a W&B workspace and report.

bouton.dashboard.write("runs/grid")       # dashboard.html in the folder
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_PUBLIC = {"write": "page", "layout": "panels", "Panel": "panels", "Section": "panels"}

if TYPE_CHECKING:
    from bouton.dashboard.page import write as write
    from bouton.dashboard.panels import Panel as Panel
    from bouton.dashboard.panels import Section as Section
    from bouton.dashboard.panels import layout as layout


def __getattr__(name: str) -> Any:
    module = _PUBLIC.get(name)
    if module is None:
        raise AttributeError(f"module 'bouton.dashboard' has no attribute {name!r}")
    return getattr(importlib.import_module(f"bouton.dashboard.{module}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
