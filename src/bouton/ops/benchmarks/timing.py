"""Interleaved timing in one process: in every round each execution runs once, in an order that rotates.

A machine whose speed changes (other load, heat) then meets all executions alike. Wall time is what a user waits; the
CPU time of all threads is less disturbed by other processes. Python collects no garbage meanwhile. On a CPU each turn
begins with a call that is not timed, as in a loop of training: where another execution has just left threads asleep or
memory given back, to wake and to get it again would take longer than a short kernel. On a GPU events time the work,
after the L2 cache is overwritten.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bouton.ops.benchmarks.case import FORWARD, Case, Inputs, Run, generator

Call = Callable[[], object]
SHORTEST = 0.02  # seconds; shorter calls are repeated on the CPU to rise above the clock's noise
PATIENCE = 8.0  # an execution that much slower than the fastest runs in fewer rounds
FEWEST = 5  # rounds that every execution gets
L2_BYTES = 256 * 2**20


@dataclass
class Sample:
    """Seconds per call, one entry per round; NaN where the execution sat out."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def median(self, clock: str) -> float:
        """Median of the rounds in which it ran."""
        return statistics.median(_present(getattr(self, clock)))


def prepare(case: Case, run: Run, inputs: Inputs, step: str) -> Call:
    """A call that makes one pass. Each execution gets its own mapping, in which it may carry a state along."""
    if step == FORWARD:
        mine = dict(inputs)

        def forward() -> None:
            with torch.no_grad():
                run(mine)

        return forward
    leaves = {name: x.detach().requires_grad_(name in case.trained) for name, x in inputs.items()}
    trained = [leaves[name] for name in case.trained]
    like = inputs[case.out_like]
    out_bar = torch.randn(like.shape, generator=generator(1)).to(like.device, like.dtype)
    return lambda: torch.autograd.grad(run(dict(leaves))[0], trained, out_bar, allow_unused=True)


def time_interleaved(calls: dict[str, Call], rounds: int, device: str) -> dict[str, Sample]:
    """Seconds per call of each execution in each round."""
    clock = _cuda_clock() if device == "cuda" else _cpu_clock
    first = {}
    for name, call in calls.items():
        call()  # loads, compiles and allocates
        first[name] = max(clock(call, 1)[0], 1e-7)
    fastest = min(first.values())
    repeats = {name: 1 if device == "cuda" else max(1, math.ceil(SHORTEST / t)) for name, t in first.items()}
    most = max(1, rounds // FEWEST)
    stride = {name: min(most, max(1, math.ceil(t / (PATIENCE * fastest)))) for name, t in first.items()}
    samples = {name: Sample() for name in calls}
    names = list(calls)
    with _no_collection():
        for index in range(rounds):
            turn = index % len(names)
            for name in names[turn:] + names[:turn]:
                wall, cpu = clock(calls[name], repeats[name]) if index % stride[name] == 0 else (math.nan, math.nan)
                samples[name].wall.append(wall)
                samples[name].cpu.append(cpu)
    return samples


@contextmanager
def _no_collection() -> Iterator[None]:
    """Collect garbage now, and then not: in whose call it would happen is chance."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def ratio(ours: Sample, peer: Sample) -> dict[str, Any]:
    """Ratio of medians, and quartiles of the ratios within a round, over the rounds in which both ran."""
    found: dict[str, Any] = {}
    for clock in ("wall", "cpu"):
        pairs = [(a, b) for a, b in zip(getattr(ours, clock), getattr(peer, clock), strict=True) if a == a and b == b]
        if not pairs or min(b for _, b in pairs) <= 0:
            continue  # no CPU clock on a GPU
        above, below = (statistics.median(column) for column in zip(*pairs, strict=True))
        paired = sorted(a / b for a, b in pairs)
        low, middle, high = statistics.quantiles(paired, n=4) if len(paired) > 1 else paired * 3
        found[clock] = {"ratio": above / below, "paired_median": middle, "quartiles": [low, high], "pairs": len(pairs)}
    return found


def _present(values: list[float]) -> list[float]:
    return [x for x in values if x == x]


def _cpu_clock(call: Call, repeats: int) -> tuple[float, float]:
    call()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - wall) / repeats, (time.process_time() - cpu) / repeats


def _cuda_clock() -> Callable[[Call, int], tuple[float, float]]:
    flush: Tensor = torch.empty(L2_BYTES, dtype=torch.int8, device="cuda")

    def clock(call: Call, repeats: int) -> tuple[float, float]:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        flush.zero_()
        torch.cuda.synchronize()
        begin.record()
        for _ in range(repeats):
            call()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) * 1e-3 / repeats, math.nan

    return clock
