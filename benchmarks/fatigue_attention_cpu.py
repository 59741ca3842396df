"""Time fatigue attention on the CPU against plain attention: a table, and JSON with the machine's description.

    python benchmarks/fatigue_attention_cpu.py [--threads 1 2] [--rounds 9] [--json FILE]

All executions run in one process, interleaved round by round; figures are medians. Nothing is timed before its result
agrees with the float64 definition. ``sdpa`` is torch's own causal attention.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from bouton.ops.fatigue_attention import Kinetics, reference, rust
from bouton.ops.fatigue_attention import torch as blocks

SHAPES = ((4, 4, 256, 64), (1, 8, 1024, 64))
TYPICAL = (0.8465, 0.55, 0.7, 3.0, -0.8, 1.0, 0.9753, 1.0, 1.0, 1e-3)
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def fatigue(backend: object, heads: int, batch: int, length: int, dtype: torch.dtype = torch.float32) -> Attention:
    kinetics = Kinetics(*(torch.full((heads,), x, dtype=dtype) for x in TYPICAL))
    calcium = torch.zeros(batch, heads, length, dtype=dtype)
    pool = torch.ones(batch, heads, length, dtype=dtype)
    forward = backend.forward  # type: ignore[attr-defined]
    return lambda q, k, v: forward(q, k, v, kinetics, calcium, pool, rule="min", release="kinetic")[0]


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def normalised(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=generator), dim=-1) * shape[-1] ** 0.5


def gate(batch: int, heads: int, length: int, dim: int, executions: dict[str, Attention]) -> None:
    """Refuse to time what is wrong."""
    g = torch.Generator().manual_seed(1)
    q, k, v = (normalised((batch, heads, length, dim), g) for _ in range(3))
    exact = fatigue(reference, heads, batch, length, torch.float64)(q.double(), k.double(), v.double())
    for name, attention in executions.items():
        error = float((attention(q, k, v) - exact).norm() / exact.norm())
        if name != "sdpa" and not error < 2e-6:
            raise SystemExit(f"{name} is wrong at {(batch, heads, length, dim)}: relative error {error:.1e}")


def measure(shape: tuple[int, int, int, int], rounds: int) -> dict[str, dict[str, float]]:
    """Median milliseconds: execution -> pass -> time."""
    batch, heads, length, _ = shape
    executions: dict[str, Attention] = {"sdpa": sdpa}
    if rust.why_not() is None:
        executions["rust"] = fatigue(rust, heads, batch, length)
    executions["torch"] = fatigue(blocks, heads, batch, length)
    gate(*shape, executions)
    g = torch.Generator().manual_seed(0)
    q, k, v = (normalised(shape, g) for _ in range(3))
    out_bar = torch.randn(shape, generator=g)
    times: dict[str, dict[str, list[float]]] = {name: {"forward": [], "both": []} for name in executions}
    for _ in range(rounds + 1):
        for name, attention in executions.items():
            with torch.no_grad():
                start = time.perf_counter()
                attention(q, k, v)
                times[name]["forward"].append(time.perf_counter() - start)
            leaves = [x.clone().requires_grad_() for x in (q, k, v)]
            start = time.perf_counter()
            attention(*leaves).backward(out_bar)
            times[name]["both"].append(time.perf_counter() - start)
    # The first round warms up.
    return {n: {p: statistics.median(x[1:]) * 1e3 for p, x in passes.items()} for n, passes in times.items()}


def machine() -> dict[str, object]:
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line), cpu)
    description: dict[str, object] = {"cpu": cpu, "system": platform.platform(), "torch": torch.__version__}
    if rust.why_not() is None:
        import bouton_kernels

        description["kernels"] = bouton_kernels.__version__
        description["instruction_set"] = bouton_kernels.instruction_set()
    return description


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if (reason := rust.why_not()) is not None:
        print(f"rust is left out: {reason}")
    results = []
    print(f"{'(B, H, T, D)':18} {'threads':>7} {'':6} {'forward':>10} {'/sdpa':>6} {'fwd+bwd':>10} {'/sdpa':>6}")
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for shape in SHAPES:
            times = measure(shape, arguments.rounds)
            base = times["sdpa"]
            for name, x in times.items():
                ratio = {p: x[p] / base[p] for p in x}
                print(
                    f"{shape!s:18} {threads:7} {name:6} {x['forward']:7.2f} ms {ratio['forward']:6.2f}"
                    f" {x['both']:7.2f} ms {ratio['both']:6.2f}"
                )
                results.append({"shape": shape, "threads": threads, "execution": name, "ms": x, "ratio": ratio})
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"machine": machine(), "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
