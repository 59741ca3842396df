"""Benchmarks of the ops: a registry of cases, a gate that refuses wrong kernels, timing against peers, figures.

``bouton bench`` and ``benchmarks/gpu.py`` run what is registered here; torch is all it needs.

A new op gets one file, ``cases/<op>.py``, with a function ``cases(device, shapes)`` that returns :class:`Case` objects:
how inputs are made, the float64 definition, small problems for the gate, a function per backend, and peers that do
comparable work. The file is found by its name; nothing else needs to be written.
"""

from __future__ import annotations

from bouton.ops.benchmarks.case import SHAPES, Case, Execution, Work
from bouton.ops.benchmarks.harness import Settings, measure_all
from bouton.ops.benchmarks.registry import cases, ops

__all__ = ["SHAPES", "Case", "Execution", "Settings", "Work", "cases", "measure_all", "ops"]
