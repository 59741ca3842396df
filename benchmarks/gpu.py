"""Check every execution of every op on an accelerator against the float64 definition, then time it against its peers.

    python benchmarks/gpu.py [--device cuda] [--rounds 20] [--small] [--json FILE]

Needs torch and ``bouton.ops`` alone (set PYTHONPATH=src). Nothing is timed before its output and its gradients agree
with the definition on a small problem. Executions and peers are timed in turn, round by round; figures are medians, of
forward plus backward. ``--small --device cpu`` runs the script itself through on any machine.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bouton.ops import backends
from bouton.ops.fast_weights import fast_weights, fast_weights_reference
from bouton.ops.fatigue_attention import Kinetics, fatigue_attention
from bouton.ops.fatigue_attention import reference as fatigue_reference
from bouton.ops.lateral_inhibition import lateral_inhibition
from bouton.ops.lateral_inhibition.reference import lateral_inhibition_reference
from bouton.ops.oscillate import oscillate
from bouton.ops.oscillate.reference import oscillate_reference

Run = Callable[..., Tensor]
KINETICS = (0.8465, 0.55, 0.7, 3.0, -0.8, 1.0, 0.9753, 1.0, 1.0, 1e-3)


@dataclass(frozen=True)
class Case:
    """One op at one shape: ``run(backend)`` and ``exact`` take the same inputs; peers do comparable work."""

    op: str
    label: str
    check: tuple[tuple[int, ...], ...]  # shapes of the inputs for the comparison with the definition
    shapes: tuple[tuple[int, ...], ...]  # shapes of the inputs for the timing
    run: Callable[[str], Run]
    exact: Run
    peers: dict[str, Run] = field(default_factory=dict)
    tolerance: float = 2e-5


def attention_case(rule: str, shape: tuple[int, int, int, int]) -> Case:
    """Fatigue attention against torch's fused attention."""

    def kinetics(q: Tensor) -> Kinetics:
        return Kinetics(*(q.new_full((q.shape[1],), value, dtype=_wide(q)) for value in KINETICS))

    def unit(x: Tensor) -> Tensor:
        return _unit(x) * math.sqrt(x.shape[-1])

    def run(backend: str) -> Run:
        return lambda q, k, v: fatigue_attention(unit(q), unit(k), v, kinetics(q), rule=rule, backend=backend)[0]

    def exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        calcium, pool = q.new_zeros(q.shape[:3]), q.new_ones(q.shape[:3])
        wide = unit(q), unit(k), v, kinetics(q), calcium, pool
        out: Tensor = fatigue_reference.forward(*wide, rule=rule, release="kinetic")[0]
        return out

    def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(unit(q), unit(k), v, is_causal=True)

    return Case("fatigue_attention", f"{rule} {shape}", ((1, 2, 70, 32),) * 3, (shape,) * 3, run, exact, {"sdpa": sdpa})


def weights_case(rule: str, shape: tuple[int, int, int, int], rank: int) -> Case:
    """Fast weights with the consolidated part against one plain matrix product of the values' shape."""
    options = {"rho_f": 0.95, "rho_s": 0.995, "eta_s": 0.01, "rule": rule}

    def run(backend: str) -> Run:
        return lambda k, v: fast_weights(_unit(k), _unit(k), v, 0.5, backend=backend, **options)[0]  # type: ignore[arg-type]

    def exact(k: Tensor, v: Tensor) -> Tensor:
        eta = k.new_full(k.shape[:3], 0.5)
        numbers = {name: k.new_full((k.shape[1],), float(options[name])) for name in ("rho_f", "rho_s", "eta_s")}  # type: ignore[arg-type]
        return fast_weights_reference(_unit(k), _unit(k), v, eta, rule=rule, **numbers)[0]  # type: ignore[arg-type]

    def product(k: Tensor, v: Tensor) -> Tensor:
        return v @ v.new_ones(v.shape[-1], v.shape[-1]) + 0 * k.sum()

    b, h, t, _ = shape
    return Case(
        "fast_weights", f"{rule} {shape} rank {rank}", ((1, 2, 70, 8), (1, 2, 70, 12)), ((b, h, t, rank), shape),
        run, exact, {"matmul": product},
    )  # fmt: skip


def elementwise_cases(rows: int, width: int) -> list[Case]:
    """The oscillating activation against GELU, lateral inhibition against a copy."""

    def run_wiggle(backend: str) -> Run:
        return lambda x, w, p: oscillate(x, w, p, backend=backend)

    def run_septin(backend: str) -> Run:
        return lambda x: lateral_inhibition(x, 0.3, 4, backend=backend)[0]

    return [
        Case("oscillate", f"({rows}, {width})", ((33, 20), (20,), (20,)), ((rows, width), (width,), (width,)),
             run_wiggle, oscillate_reference, {"gelu": lambda x, w, p: F.gelu(x) + 0 * (w + p)}),
        Case("lateral_inhibition", f"(1, 4, {rows}, 64)", ((1, 2, 33, 8),), ((1, 4, rows, 64),),
             run_septin, lambda x: lateral_inhibition_reference(x, 0.3, 4)[0], {"copy": lambda x: x * 1.0}),
    ]  # fmt: skip


def cases(small: bool) -> list[Case]:
    """Small ones only show that the script works."""
    if small:
        return [
            attention_case("min", (1, 2, 96, 32)),
            weights_case("delta", (1, 2, 96, 16), 8),
            *elementwise_cases(64, 48),
        ]
    attention = [(4, 12, 1024, 64), (1, 12, 4096, 64), (4, 8, 2048, 128)]
    return [
        *(attention_case(rule, shape) for rule in ("min", "mul") for shape in attention),
        *(weights_case(rule, (8, 4, 2048, 192), 16) for rule in ("hebb", "delta")),
        *elementwise_cases(16384, 3072),
    ]


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _unit(x: Tensor) -> Tensor:
    return x * x.square().sum(-1, keepdim=True).rsqrt()


def inputs(shapes: Sequence[tuple[int, ...]], device: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Leaves that require gradients, the same numbers on every device."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(s, generator=generator).to(device, dtype).requires_grad_() for s in shapes]


def forward_backward(run: Run, leaves: Sequence[Tensor], upstream: Tensor | None) -> list[Tensor]:
    """The output and the gradients of all leaves."""
    out = run(*leaves)
    grads = torch.autograd.grad(out, leaves, torch.ones_like(out) if upstream is None else upstream)
    return [out.detach(), *grads]


def error(case: Case, backend: str, device: str) -> float:
    """Largest relative difference from the float64 definition, over output and gradients."""
    exact_leaves = inputs(case.check, device, torch.float64)
    shape = case.exact(*exact_leaves).shape
    upstream = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device)
    expected = forward_backward(case.exact, exact_leaves, upstream.double())
    actual = forward_backward(case.run(backend), inputs(case.check, device), upstream)
    return max(float((a.double() - e).norm() / e.norm()) for a, e in zip(actual, expected, strict=True))


def seconds(run: Run, leaves: Sequence[Tensor], device: str) -> float:
    """One forward and backward pass, the device's queue drained before and after."""
    if device == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    forward_backward(run, leaves, None)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def measure(case: Case, executions: dict[str, Run], device: str, rounds: int) -> dict[str, dict[str, Any]]:
    """Name -> median milliseconds and, on a GPU, peak memory in MiB."""
    leaves = inputs(case.shapes, device)
    times: dict[str, list[float]] = {name: [] for name in executions}
    memory: dict[str, float | None] = {}
    for name, run in executions.items():  # warm-up, and the memory of one pass
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds(run, leaves, device)
        memory[name] = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else None
    for _ in range(rounds):
        for name, run in executions.items():
            times[name].append(seconds(run, leaves, device))
    return {name: {"ms": 1e3 * statistics.median(t), "peak_mib": memory[name]} for name, t in times.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = options.device
    if device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here; --device cpu --small runs the script itself through")
        return 0
    machine = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    print(f"{machine}, torch {torch.__version__}, float32, forward + backward, median of {options.rounds} rounds")
    torch.backends.cuda.matmul.allow_tf32 = False
    results, wrong = [], 0
    for case in cases(options.small):
        executions: dict[str, Run] = {}
        errors: dict[str, float] = {}
        for backend in backends.backends_of(case.op):
            if (reason := backends.refusals(case.op, device).get(backend)) is not None:
                print(f"{case.op:20} {case.label:28} {backend:8} not run: {reason}")
                continue
            errors[backend] = error(case, backend, device)
            if errors[backend] <= case.tolerance:
                executions[backend] = case.run(backend)
            else:
                wrong += 1
                print(f"{case.op:20} {case.label:28} {backend:8} WRONG: relative error {errors[backend]:.1e}")
        figures = measure(case, {**executions, **case.peers}, device, options.rounds)
        peer = min(figures[name]["ms"] for name in case.peers)
        for name, figure in figures.items():
            memory = f"{figure['peak_mib']:8.1f} MiB" if figure["peak_mib"] is not None else ""
            note = f"error {errors[name]:.1e}" if name in errors else "peer"
            print(
                f"{case.op:20} {case.label:28} {name:8} {figure['ms']:9.3f} ms  {figure['ms'] / peer:6.2f} x  "
                f"{memory}  {note}"
            )
        results.append({"op": case.op, "case": case.label, "errors": errors, "figures": figures})
    if options.json:
        head = {"machine": machine, "torch": torch.__version__, "python": platform.python_version(), "device": device}
        options.json.write_text(json.dumps({**head, "rounds": options.rounds, "results": results}, indent=2) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
