"""Evidence: tables of runs, paired statistics, prices, figures and the report, all computed from run folders alone.

    frame = bouton.evidence.load("runs/grid")       # one row per run
    lines = bouton.evidence.curves(frame)           # their learning curves
    study = bouton.evidence.analyse(frame)          # statistics, prices, synergies
    bouton.evidence.report("runs/grid")             # report.md, report.html, figures/, statistics.*

Names are loaded on first use: a notebook that reads a table does not wait for matplotlib.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_PUBLIC = {
    "load": "frame",
    "curves": "frame",
    "compare": "statistics",
    "summarize": "statistics",
    "analyse": "study",
    "report": "report",
}

if TYPE_CHECKING:
    from bouton.evidence.frame import curves as curves
    from bouton.evidence.frame import load as load
    from bouton.evidence.report import report as report
    from bouton.evidence.statistics import compare as compare
    from bouton.evidence.statistics import summarize as summarize
    from bouton.evidence.study import analyse as analyse


def __getattr__(name: str) -> Any:
    module = _PUBLIC.get(name)
    if module is None:
        raise AttributeError(f"module 'bouton.evidence' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"bouton.evidence.{module}"), name)
    globals()[name] = value  # importing the submodule `report` would otherwise hide the function of that name
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
