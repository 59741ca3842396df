"""The Triton kernels of the neurons and of the oscillating activation equal their definitions, under the interpreter.

Whether Triton compiles or interprets is settled when it is imported: the cases run in a process of their own.
"""

import importlib.util
import itertools
import os
import subprocess
import sys

import pytest
import torch

from bouton.errors import KernelError
from bouton.ops.lif import RESET_ORDERS, RESETS, SURROGATES, lif_reference, lif_scan, rlif_scan
from bouton.ops.oscillate import oscillate, oscillate_reference

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs in the process of test_under_the_interpreter")
DEFAULTS = {"reset": "subtract", "reset_order": "after_decay", "surrogate": "atan", "detach_reset": True}
CASES = [
    *({"reset": r, "reset_order": o, "detach_reset": d} for r, o, d in itertools.product(RESETS, RESET_ORDERS, (0, 1))),
    *({"surrogate": name} for name in SURROGATES),
]


def problem(recurrent):
    g = torch.Generator().manual_seed(0)
    batch, tokens, width = 2, 11, 20
    inputs = {
        "x": 1.5 * torch.rand(batch, tokens, width, generator=g) - 0.3,
        "beta": 0.5 + 0.4 * torch.rand(width, generator=g),
        "theta": 0.7 + 0.5 * torch.rand(width, generator=g),
        "gain": 0.7 + 0.5 * torch.rand(width, generator=g),
        "w_rec": 0.4 * (torch.rand(width, width, generator=g) - 0.5) if recurrent else None,
        "u0": torch.rand(batch, width, generator=g),
        "s0": (torch.rand(batch, width, generator=g) < 0.4).float(),
    }
    return inputs, torch.rand(batch, tokens, generator=g) < 0.2


def outcome(run, inputs, dtype):
    leaves = {name: x.detach().to(dtype, copy=True).requires_grad_() for name, x in inputs.items() if x is not None}
    outputs = run(leaves)
    g = torch.Generator().manual_seed(1)
    sum((y * torch.rand(y.shape, generator=g).to(dtype)).sum() for y in outputs).backward()
    grads = {f"d{n}": torch.zeros_like(x) if x.grad is None else x.grad for n, x in leaves.items()}
    return {**{f"y{i}": y.detach() for i, y in enumerate(outputs)}, **grads}


def assert_close(found, expected, tolerance):
    assert set(found) == set(expected)
    for name, value in expected.items():
        error = (found[name].double() - value).norm() / value.norm().clamp_min(1e-6)
        assert error < tolerance, f"{name}: {error}"


@interpreted
@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("kind", CASES, ids=str)
def test_lif_equals_the_definition(kind, documents, recurrent):
    options = {**DEFAULTS, **kind, "detach_reset": bool(kind.get("detach_reset", True))}
    inputs, starts = problem(recurrent)
    starts = starts if documents else None

    def by_kernel(x):
        rest = {name: x[name] for name in ("beta", "theta", "gain", "u0", "s0")}
        if recurrent:
            return rlif_scan(x["x"], x["w_rec"], **rest, starts=starts, backend="triton", **options)
        return lif_scan(x["x"], **rest, starts=starts, backend="triton", **options)

    def by_definition(x):
        order = ("x", "beta", "theta", "gain", "w_rec", "u0", "s0")
        alpha = SURROGATES[options["surrogate"]]
        return lif_reference(*(x.get(name) for name in order), starts, alpha=alpha, **options)

    expected = outcome(by_definition, inputs, torch.float64)
    assert 0.05 < expected["y0"].mean() < 0.95
    assert_close(outcome(by_kernel, inputs, torch.float32), expected, 2e-5)


@interpreted
@pytest.mark.parametrize("shape", [(37, 20), (2, 5, 64)])
@pytest.mark.parametrize("baseline", [False, True])
def test_oscillate_equals_the_definition(shape, baseline):
    g = torch.Generator().manual_seed(0)
    inputs = {
        "x": 3 * torch.randn(shape, generator=g),
        "omega": 1 + torch.randn(shape[-1], generator=g),
        "phi": torch.randn(shape[-1], generator=g),
        "baseline": torch.randn(shape[-1], generator=g) if baseline else None,
    }
    order = ("x", "omega", "phi", "baseline")
    found = outcome(lambda x: (oscillate(*(x.get(n) for n in order), backend="triton"),), inputs, torch.float32)
    expected = outcome(lambda x: (oscillate_reference(*(x.get(n) for n in order)),), inputs, torch.float64)
    assert_close(found, expected, 2e-5)


@interpreted
def test_double_precision_is_refused():
    with pytest.raises(KernelError, match="float32"):
        lif_scan(torch.zeros(1, 2, 3, dtype=torch.float64), 0.9, backend="triton")


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="is the process that runs the cases")
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_under_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib", __file__]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTEST_ADDOPTS": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
