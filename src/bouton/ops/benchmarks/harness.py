"""Runs cases: gate, interleaved timing, peak memory, ratios, share of the machine's limit; plain dicts come out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bouton.ops.benchmarks import gate, memory
from bouton.ops.benchmarks.case import Case, Run
from bouton.ops.benchmarks.machine import Limit, limit
from bouton.ops.benchmarks.timing import Sample, prepare, ratio, time_interleaved

Result = dict[str, Any]
Notify = Callable[[int, int, str], None]  # done, total, what is done now


@dataclass(frozen=True)
class Settings:
    """How to measure; ``shapes`` is the word the cases were made with, by which a fresh process finds them again."""

    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    rounds: int = 15
    shapes: str = "issue"
    memory: bool = True
    passes: tuple[str, ...] = ("forward", "forward+backward")


def measure_all(cases: Sequence[Case], settings: Settings, notify: Notify = lambda *_: None) -> list[Result]:
    """One result per case, in plain types. Nothing is timed whose results differ from the definition.

    A result has ``errors`` and ``wrong`` (execution -> quantity -> relative error), ``skipped`` (execution -> reason)
    and ``passes``: pass -> execution -> ``wall_ms``, ``cpu_ms``, ``peak_bytes``, ``flops_per_second``,
    ``share_of_limit`` and ``ratios``: peer -> wall and cpu -> ratio of medians and quartiles.
    """
    peak = limit(settings.device, settings.dtype)
    gates: dict[tuple[str, str, str], dict[str, float] | str] = {}
    results = []
    for index, case in enumerate(cases):

        def tell(text: str, index: int = index, case: Case = case) -> None:
            notify(index, len(cases), f"{case.op} {case.name}: {text}")

        results.append(_Measurement(case, settings, peak, gates, tell).result())
    notify(len(cases), len(cases), "done")
    return results


class _Measurement:
    """One case."""

    def __init__(
        self,
        case: Case,
        settings: Settings,
        peak: Limit,
        gates: dict[tuple[str, str, str], dict[str, float] | str],
        tell: Callable[[str], None],
    ) -> None:
        self.case, self.settings, self.peak, self.gates, self.tell = case, settings, peak, gates, tell
        self.errors: dict[str, dict[str, float]] = {}
        self.wrong: dict[str, dict[str, float]] = {}
        self.skipped: dict[str, str] = {}

    def result(self) -> Result:
        case, settings = self.case, self.settings
        runs = self._admitted()
        inputs = gate.on(case.inputs(settings.dtype), settings.device)
        passes = {}
        for step in case.passes:
            if step in settings.passes:
                mine = {e.name: runs[e.name] for e in case.executions if e.name in runs and step in e.passes}
                if figures := self._time(mine, inputs, step):
                    passes[step] = figures
        return {
            "op": case.op,
            "case": case.name,
            "dims": dict(case.dims),
            "dtype": str(settings.dtype).removeprefix("torch."),
            "errors": self.errors,
            "wrong": self.wrong,
            "skipped": self.skipped,
            "peers": [e.name for e in case.executions if not e.ours and e.name in runs],
            "passes": passes,
        }

    def _admitted(self) -> dict[str, Run]:
        """The executions that run here and, if they are ours, compute what the definition says."""
        runs: dict[str, Run] = {}
        for execution in self.case.executions:
            self.tell(f"checking {execution.name}" if execution.ours else f"preparing {execution.name}")
            try:
                run = execution.make(self.settings.device, self.settings.dtype)
            except Exception as error:  # an execution that cannot be made is left out, with its reason
                self.skipped[execution.name] = one_line(error)
                continue
            if not execution.ours or self._passes_gate(execution.name, run):
                runs[execution.name] = run
        return runs

    def _passes_gate(self, name: str, run: Run) -> bool:
        case, dtype = self.case, self.settings.dtype
        key = (f"{case.op} {case.gate}", name, str(dtype))
        if key not in self.gates:
            try:
                self.gates[key] = gate.errors(case, run, self.settings.device, dtype)
            except Exception as error:  # a kernel that raises on a valid problem is as wrong as one that is off
                self.gates[key] = one_line(error)
        found = self.gates[key]
        if isinstance(found, str):
            self.wrong[name] = {found: float("nan")}
            return False
        self.errors[name] = found
        if bad := gate.wrong(case, found, dtype):
            self.wrong[name] = bad
        return not bad

    def _time(self, runs: dict[str, Run], inputs: dict[str, torch.Tensor], step: str) -> dict[str, Any]:
        case, settings = self.case, self.settings
        calls = {}
        for name, run in runs.items():
            self.tell(f"{step}, first call of {name}")
            call = prepare(case, run, inputs, step)
            try:
                call()
            except Exception as error:  # e.g. a compiler that is missing, or a pass that a peer does not have
                self.skipped[f"{name} {step}"] = one_line(error)
                continue
            calls[name] = call
        if not calls:
            return {}
        self.tell(f"{step}, timing {', '.join(calls)}")
        samples = time_interleaved(calls, settings.rounds, settings.device)
        del calls
        ours = {e.name for e in case.executions if e.ours}
        return {
            name: self._figures(name, sample, {n: s for n, s in samples.items() if n not in ours}, runs[name], step)
            for name, sample in samples.items()
        }

    def _figures(self, name: str, sample: Sample, peers: dict[str, Sample], run: Run, step: str) -> dict[str, Any]:
        seconds = sample.median("wall")
        cpu = sample.median("cpu")
        work = self.case.work.get(step)
        work = work and work.of(self.settings.dtype)
        return {
            "wall_ms": 1e3 * seconds,
            "cpu_ms": 1e3 * cpu if cpu == cpu else None,
            "peak_bytes": self._peak_bytes(name, run, step),
            "flops_per_second": work.flops / seconds if work and work.flops else None,
            "bytes_per_second": work.bytes / seconds if work and work.bytes else None,
            "share_of_limit": self.peak.seconds(work) / seconds if work else None,
            "ratios": {peer: ratio(sample, other) for peer, other in peers.items() if peer != name},
        }

    def _peak_bytes(self, name: str, run: Run, step: str) -> float | None:
        settings = self.settings
        if not settings.memory:
            return None
        self.tell(f"{step}, memory of {name}")
        try:
            if settings.device == "cuda":
                return memory.on_cuda(self.case, run, step, settings.dtype)
            return memory.on_cpu(self.case, settings.shapes, name, step, settings.dtype, torch.get_num_threads())
        except RuntimeError as error:
            self.skipped[f"{name} {step}, memory"] = one_line(error)
            return None


def one_line(error: Exception) -> str:
    """The first line of an error, with its kind."""
    text = str(error).strip()
    line = text.splitlines()[0][:200] if text else ""
    return line if isinstance(error, RuntimeError) and line else f"{type(error).__name__}: {line}"
