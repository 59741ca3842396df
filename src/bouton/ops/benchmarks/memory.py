"""Peak memory that one pass adds to its inputs.

On the CPU it is the high-water mark of the resident set, in a fresh process for every figure: an allocator that still
holds the memory of an earlier pass would hide it. Linux only. On a GPU torch's allocator counts.

    python -m bouton.ops.benchmarks.memory OP CASE SHAPES EXECUTION PASS DTYPE THREADS     prints bytes
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from bouton.ops.benchmarks.case import Case, Run
from bouton.ops.benchmarks.gate import on
from bouton.ops.benchmarks.registry import cases
from bouton.ops.benchmarks.timing import prepare

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_LONGEST = 300.0  # seconds for one figure


def on_cuda(case: Case, run: Run, step: str, dtype: torch.dtype) -> float:
    """Bytes that a pass adds at its peak."""
    call = prepare(case, run, on(case.inputs(dtype), "cuda"), step)
    call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return float(torch.cuda.max_memory_allocated() - before)


def on_cpu(case: Case, shapes: str, execution: str, step: str, dtype: torch.dtype, threads: int) -> float:
    """Bytes that a pass adds at its peak, measured in a process of its own.

    Raises:
        RuntimeError: why that cannot be done.
    """
    if not (_STATUS.exists() and os.access(_CLEAR, os.W_OK)):
        raise RuntimeError("this system has no high-water mark that can be reset")
    words = [case.op, case.name, shapes, execution, step, str(dtype).removeprefix("torch."), str(threads)]
    source = str(Path(__file__).resolve().parents[3])
    path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", __name__, *words]
    try:
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=_LONGEST
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"it took more than {_LONGEST:.0f} s") from None
    if done.returncode != 0:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:200])
    return float(done.stdout)


def _status(name: str) -> float:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(name + ":"))
    return 1024.0 * float(line.split()[1])


def main(words: list[str]) -> None:
    """Measure the figure that ``words`` describe and print it."""
    op, name, shapes, execution, step, dtype_name, threads = words
    torch.set_num_threads(int(threads))
    dtype: torch.dtype = getattr(torch, dtype_name)
    case = next(c for c in cases(op, "cpu", shapes) if c.name == name)
    found = next(e for e in case.executions if e.name == execution)
    if found.compiled:
        raise SystemExit("its compiler works in the same process and would be counted")
    run = found.make("cpu", dtype)
    for problem in case.problems:  # code is loaded and threads are started by a small problem
        prepare(case, run, problem(dtype), step)()
    inputs = case.inputs(dtype)
    call = prepare(case, run, inputs, step)
    _CLEAR.write_text("5")
    before = _status("VmRSS")
    call()
    print(max(0.0, _status("VmHWM") - before))


if __name__ == "__main__":
    main(sys.argv[1:])
