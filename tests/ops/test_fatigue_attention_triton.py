"""The Triton kernels of fatigue attention, under Triton's interpreter, equal the sequential definition in float64.

Whether Triton compiles or interprets is settled when it is imported: the cases run in a process of their own.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from bouton.errors import KernelError
from bouton.ops import backends
from bouton.ops.fatigue_attention import Kinetics, fatigue_attention, reference
from bouton.ops.fatigue_attention import triton as backend

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
TYPICAL = (0.85, 0.55, 0.7, 3.0, -0.8, 1.0, 0.9, 1.0, 1.0, 1e-2)
interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs in the process of test_under_the_interpreter")

# batch, heads, kv_heads, tq, old keys, dim, lam, s, options
CASES: dict[str, tuple[tuple[int, int, int, int, int, int, float, float], dict[str, Any]]] = {
    "min, grouped heads": ((2, 4, 2, 19, 0, 7, 1.0, 3.0), {"rule": "min"}),
    "mul, old keys": ((1, 2, 2, 18, 23, 24, 1.0, 3.0), {"rule": "mul"}),
    "min, any exponent and gain": ((1, 2, 1, 20, 5, 16, 0.5, 9.0), {"rule": "min"}),
    "min, window and documents": ((1, 2, 1, 20, 30, 8, 1.0, 3.0), {"rule": "min", "window": 9, "segmented": True}),
    "mul, age": ((1, 2, 1, 20, 5, 8, 1.0, 3.0), {"rule": "mul", "release": "age"}),
    "min, decoding": ((2, 2, 1, 1, 40, 16, 1.0, 3.0), {"rule": "min"}),
}


def run(module: Any, shape: tuple[int, int, int, int, int, int, float, float], dtype: torch.dtype, options: Any) -> Any:
    """Results, and gradients of a fixed random function of them in every input."""
    batch, heads, kv_heads, tq, old, dim, lam, s = shape
    g = torch.Generator().manual_seed(0)
    constants = [x * (1 - 0.05 * torch.rand(heads, generator=g)) for x in TYPICAL]
    constants[3], constants[8] = torch.full((heads,), s), torch.full((heads,), lam)
    named = {
        "q": torch.randn(batch, heads, tq, dim, generator=g),
        "k": torch.randn(batch, kv_heads, tq + old, dim, generator=g),
        "v": torch.randn(batch, kv_heads, tq + old, dim, generator=g),
        "calcium": torch.rand(batch, heads, old, generator=g),
        "pool": 0.2 + 0.7 * torch.rand(batch, heads, old, generator=g),
        **dict(zip(Kinetics._fields, constants, strict=True)),
    }
    leaves = {name: x.to(dtype).requires_grad_() for name, x in named.items()}
    kinetics = Kinetics(*(leaves[name] for name in Kinetics._fields))
    fresh = torch.zeros(batch, heads, tq, dtype=dtype)
    calcium = torch.cat((leaves["calcium"], fresh), -1)
    pool = torch.cat((leaves["pool"], fresh + kinetics.r_max[:, None]), -1)
    options = {"release": "kinetic", **options}
    if options.pop("segmented", False):
        ids = (torch.rand(batch, tq + old, generator=g) < 0.06).cumsum(1)
        options |= {"segments_q": ids[:, old:], "segments_k": ids}
    results = module.forward(leaves["q"], leaves["k"], leaves["v"], kinetics, calcium, pool, **options)
    loss = sum((x * torch.randn(x.shape, generator=g).to(dtype)).sum() for x in results)
    assert isinstance(loss, Tensor)
    grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    filled = [torch.zeros_like(x) if y is None else y for x, y in zip(leaves.values(), grads, strict=True)]
    state = dict(zip(("out", "calcium after", "pool after"), results, strict=True))
    return state | dict(zip(leaves, filled, strict=True))


@interpreted
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name: str) -> None:
    shape, options = CASES[name]
    found, exact = run(backend, shape, torch.float32, options), run(reference, shape, torch.float64, options)
    for key, x in exact.items():
        kinetic = key in Kinetics._fields
        error = (found[key].double() - x).norm() / x.norm().clamp_min(0.05 if kinetic else 1e-4)
        assert error < (5e-4 if kinetic else 5e-6), f"{key}: relative error {error:.1e}"


@interpreted
def test_the_interpreter_is_taken_by_name_alone() -> None:
    q = torch.randn(1, 2, 5, 16)
    kinetics = Kinetics(*(torch.full((2,), x) for x in TYPICAL))
    exact, _ = fatigue_attention(q, q, q, kinetics, backend="torch")
    found, _ = fatigue_attention(q, q, q, kinetics, backend="triton")
    torch.testing.assert_close(found, exact)
    assert backends.select("fatigue_attention", "cpu", refused={"triton": "by name alone"}) != "triton"
    with pytest.raises(KernelError, match="float32 or all bfloat16"):
        fatigue_attention(q.double(), q.double(), q.double(), kinetics, backend="triton")


@pytest.mark.skipif(INTERPRETED, reason="this is that process")
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_under_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", __file__]
    done = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert f"{len(CASES) + 1} passed" in done.stdout


@pytest.mark.skipif(INTERPRETED or torch.cuda.is_available(), reason="here the kernels can run")
def test_without_a_device_the_reason_is_said() -> None:
    q = torch.randn(1, 2, 5, 16)
    kinetics = Kinetics(*(torch.full((2,), x) for x in TYPICAL))
    with pytest.raises(KernelError, match="triton"):
        fatigue_attention(q, q, q, kinetics, backend="triton")
