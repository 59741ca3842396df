"""The machine that was measured on: what it is, and how fast it computes and moves bytes."""

from __future__ import annotations

import datetime
import importlib
import os
import platform
import subprocess
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from bouton.ops.benchmarks.case import Work

# NVIDIA's data sheets, dense, FLOP/s: name of the GPU contains -> dtype -> peak. float32 without tensor cores.
DATASHEET = {
    "H200": {"bfloat16": 989e12, "float32": 67e12},
    "H100": {"bfloat16": 989e12, "float32": 67e12},
    "A100": {"bfloat16": 312e12, "float32": 19.5e12},
}


@dataclass(frozen=True)
class Limit:
    """Measured peaks: FLOP/s and what reached them, bytes/s of a large copy (read + write)."""

    flops: float
    bandwidth: float
    source: str = "matrix product"

    def seconds(self, work: Work) -> float:
        """The least time in which ``work`` could be done: its arithmetic or its traffic, whichever takes longer."""
        return max(work.flops / self.flops, work.bytes / self.bandwidth)


def limit(device: str, dtype: torch.dtype) -> Limit:
    """Measure both peaks now, at the present number of threads: the best of several.

    On a CPU the arithmetic is that of the vector units, if the Rust kernels are there to measure it and torch's matrix
    product is not above it (in bfloat16 a matrix unit is).
    """
    size, megabytes = (8192, 2048) if device == "cuda" else (1024, 128)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    source = torch.zeros(megabytes * 2**18, device=device)
    target = torch.empty_like(source)
    product = 2 * size**3 / _best(lambda: torch.mm(a, b), device)
    bandwidth = 2 * source.numel() * 4 / _best(lambda: target.copy_(source), device)
    # A library's matrix product may stay behind the processor, and our kernels would then pass its "limit".
    units = _fma_peak() if device == "cpu" else None
    if units is not None and units > product:
        return Limit(units, bandwidth, f"multiply-adds in registers ({_instruction_set()})")
    return Limit(product, bandwidth, f"torch's matrix product ({str(dtype).removeprefix('torch.')})")


def _fma_peak() -> float | None:
    """FLOP/s of this processor's vector units in float32; None without the Rust kernels."""
    try:
        return float(importlib.import_module("bouton_kernels").fma_peak(torch.get_num_threads()))
    except (ImportError, AttributeError):  # not installed, or a wheel from before this function
        return None


def _best(call: Any, device: str, repeats: int = 8) -> float:
    best = float("inf")
    for _ in range(repeats + 2):
        if device == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begin)
    return best


def describe(device: str) -> dict[str, Any]:
    """Machine and versions, in plain types."""
    facts: dict[str, Any] = {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "load": [round(x, 2) for x in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "torch": torch.__version__,
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "triton": _version("triton"),
        "fla_core": _version("fla-core"),
        "bouton_kernels": _version("bouton-kernels"),
        "instruction_set": _instruction_set(),
        "git": _git(),
    }
    if device == "cuda":
        name = torch.cuda.get_device_name()
        facts["gpu"] = name
        facts["cuda"] = torch.version.cuda
        facts["datasheet_flops"] = next((peaks for key, peaks in DATASHEET.items() if key in name), None)
    return facts


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _instruction_set() -> str | None:
    try:
        return str(importlib.import_module("bouton_kernels").instruction_set())
    except (ImportError, AttributeError):
        return None


def _git() -> dict[str, Any] | None:
    """Commit, and whether tracked files differ from it; None outside a checkout."""
    root = Path(__file__).resolve().parents[4]
    if not (root / ".git").exists():
        return None
    try:
        commit = _output("git", "-C", str(root), "rev-parse", "HEAD")
        changed = _output("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "modified": bool(changed)}


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
