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
from bouton.ops.fatigue_attention import Kinetics, fatigue_attention, plain, reference
from bouton.ops.fatigue_attention import triton as backend

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
TYPICAL = (0.85, 0.55, 0.7, 3.0, -0.8, 1.0, 0.9, 1.0, 1.0, 1e-2)
interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs in the process of test_under_the_interpreter")

# batch, heads, kv_heads, tq, old keys, dim, lam, s, options
CASES: dict[str, tuple[tuple[int, int, int, int, int, int, float, float], dict[str, Any]]] = {
    "min, grouped heads": ((1, 4, 2, 19, 0, 7, 1.0, 3.0), {"rule": "min"}),
    "mul, old keys": ((1, 2, 2, 18, 23, 24, 1.0, 3.0), {"rule": "mul"}),
    "min, any exponent and gain": ((1, 2, 1, 20, 5, 16, 0.5, 9.0), {"rule": "min"}),
    "min, window and documents": ((1, 2, 1, 20, 30, 8, 1.0, 3.0), {"rule": "min", "window": 9, "segmented": True}),
    "min, many blocks, grouped heads": ((1, 2, 1, 36, 20, 16, 1.0, 3.0), {"rule": "min"}),
    "mul, many blocks, window": ((1, 1, 1, 70, 28, 24, 1.0, 3.0), {"rule": "mul", "window": 21}),
    "mul, documents": ((1, 1, 1, 50, 0, 8, 1.0, 3.0), {"rule": "mul", "segmented": True}),
    "min, a window of one": ((1, 1, 1, 37, 20, 8, 1.0, 3.0), {"rule": "min", "window": 1}),
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


@interpreted
@pytest.mark.parametrize("rule", ["min", "mul"])
def test_bfloat16(rule: str) -> None:
    """Within what rounding of inputs, weights and results to bfloat16 explains; the definition has the same inputs."""
    q, k, v = _bfloat16_inputs((1, 2, 20, 16), 24)
    kinetics = [torch.full((2,), x) for x in TYPICAL]
    state = [torch.zeros(1, 2, 24), torch.ones(1, 2, 24)]
    found: list[Tensor] = []
    exact: list[Tensor] = []
    sides: Any = ((backend, torch.float32, found), (reference, torch.float64, exact))
    for module, dtype, results in sides:
        leaves = [x.to(x.dtype if dtype == torch.float32 else dtype).requires_grad_() for x in (q, k, v)]
        kin = [x.to(dtype).requires_grad_() for x in kinetics]
        out, calcium, pool = module.forward(
            *leaves, Kinetics(*kin), *(x.to(dtype) for x in state), rule=rule, release="kinetic"
        )
        results += [out, calcium, pool]
        weight = torch.linspace(-1, 1, out.numel()).view(out.shape)
        results += torch.autograd.grad((out.to(dtype) * weight).sum() + calcium.sum() + pool.sum(), [*leaves, *kin])
    assert found[0].dtype == torch.bfloat16 and found[3].dtype == torch.bfloat16
    names = ("out", "calcium", "pool", "dq", "dk", "dv", *(f"d{name}" for name in Kinetics._fields))
    for name, x, y in zip(names, found, exact, strict=True):
        error = float(((x.double() - y).norm() / y.norm().clamp_min(1e-2)).detach())
        # Gradients of the kinetics are sums that cancel.
        limit = 2e-4 if name in ("calcium", "pool") else 5e-2 if name[1:] in Kinetics._fields else 1e-2
        assert error < limit, f"{name}: relative error {error:.1e}"


def _bfloat16_inputs(shape: tuple[int, int, int, int], keys: int) -> tuple[Tensor, Tensor, Tensor]:
    batch, heads, _, dim = shape
    g = torch.Generator().manual_seed(1)
    q = torch.randn(shape, generator=g)
    k, v = (torch.randn(batch, heads, keys, dim, generator=g) for _ in range(2))
    return q.bfloat16(), k.bfloat16(), v.bfloat16()


@interpreted
@pytest.mark.parametrize("rule", ["min", "mul"])
@pytest.mark.parametrize("old", [0, 20])
def test_a_sequence_in_two_calls_is_the_sequence(rule: str, old: int) -> None:
    """The state that a call returns is the one the next needs; neither ends with a block of queries or keys."""
    g = torch.Generator().manual_seed(3)
    first, second = 21, 12
    q, k, v = (torch.randn(1, 1, n + first + second, 16, generator=g) for n in (0, old, old))
    kinetics = Kinetics(*(torch.full((1,), x) for x in TYPICAL))
    calcium = torch.cat((torch.rand(1, 1, old, generator=g), torch.zeros(1, 1, first + second)), -1)
    pool = torch.cat((0.2 + 0.7 * torch.rand(1, 1, old, generator=g), torch.ones(1, 1, first + second)), -1)

    def call(start: int, stop: int, c: Tensor, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        keys = slice(0, old + stop)
        return backend.forward(q[:, :, start:stop], k[:, :, keys], v[:, :, keys], kinetics, c, r, **options)

    options: Any = {"rule": rule, "release": "kinetic"}
    whole = call(0, first + second, calcium, pool)
    out, c, r = call(0, first, calcium[..., : old + first], pool[..., : old + first])
    c, r = torch.cat((c, calcium[..., old + first :]), -1), torch.cat((r, pool[..., old + first :]), -1)
    rest, c, r = call(first, first + second, c, r)
    for found, exact in zip((torch.cat((out, rest), 2), c, r), whole, strict=True):
        torch.testing.assert_close(found, exact)


@interpreted
def test_results_do_not_depend_on_what_is_saved() -> None:
    """Bit for bit, run after run: the parts of the outputs are added up in a fixed order."""
    g = torch.Generator().manual_seed(4)
    q, k, v = (torch.randn(1, 1, 36, 16, generator=g) for _ in range(3))
    kinetics = torch.tensor(TYPICAL)[:, None]
    state = torch.zeros(1, 1, 36), torch.ones(1, 1, 36)
    results = [
        backend.launch_forward(q, k, v, kinetics, *state, None, None, window, "min", "kinetic", save)
        for window in (0, 20)
        for save in (False, True)
    ]
    for without, saved in zip(results[::2], results[1::2], strict=True):
        assert all(torch.equal(x, y) for x, y in zip(without[:3], saved[:3], strict=True))


@interpreted
def test_the_operators_are_sound() -> None:
    """Schema, fake tensors and autograd registration, as ``torch.library`` checks them."""
    q = torch.randn(1, 2, 9, 16, requires_grad=True)
    kinetics = torch.tensor(TYPICAL)[:, None].repeat(1, 2).requires_grad_()
    state = torch.zeros(1, 2, 9), torch.ones(1, 2, 9)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(
        backend._forward, (q, q, q, kinetics, *state, None, None, 0, "min", "kinetic", True), test_utils=checks
    )
    torch.library.opcheck(plain._forward, (q, q, q), test_utils=checks)


@interpreted
def test_one_graph_under_compile() -> None:
    q = torch.randn(1, 2, 9, 16)
    kinetics = Kinetics(*(torch.full((2,), x) for x in TYPICAL))

    def loss(x: Tensor) -> Tensor:
        out, state = fatigue_attention(x, x, x, kinetics, backend="triton")
        return out.square().sum() + state["pool"].sum()

    gradients = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        x = q.clone().requires_grad_()
        function(x).backward()
        gradients.append(x.grad)
    torch.testing.assert_close(gradients[1], gradients[0])


@interpreted
def test_plain_attention_is_the_peer() -> None:
    g = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(1, 2, t, 24, generator=g).requires_grad_() for t in (21, 37, 37))
    seen = torch.ones(21, 37, dtype=torch.bool).tril(16)
    exact = torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=seen)
    found = backend.plain_attention(q, k, v)
    weight = torch.randn(found.shape, generator=g)
    torch.testing.assert_close(found, exact.float())
    wanted = torch.autograd.grad((exact * weight).sum(), (q, k, v))
    for x, y in zip(torch.autograd.grad((found * weight).sum(), (q, k, v)), wanted, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="do not fit together"):
        backend.plain_attention(q, k[:, :1], v)


@pytest.mark.skipif(INTERPRETED, reason="this is that process")
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_under_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", __file__]
    done = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert f"{len(CASES) + 11} passed" in done.stdout


@pytest.mark.skipif(INTERPRETED or torch.cuda.is_available(), reason="here the kernels can run")
def test_without_a_device_the_reason_is_said() -> None:
    q = torch.randn(1, 2, 5, 16)
    kinetics = Kinetics(*(torch.full((2,), x) for x in TYPICAL))
    with pytest.raises(KernelError, match="triton"):
        fatigue_attention(q, q, q, kinetics, backend="triton")
