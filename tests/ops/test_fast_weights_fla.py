"""Fast weights by flash-linear-attention equal the sequential definition in float64: outputs, state, gradients.

What is asked of the package is tested twice: with stand-ins for its functions, in float64, and with its own kernels
under Triton's interpreter, in a process of their own, since that is settled when Triton is imported.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from bouton.errors import KernelError
from bouton.ops import backends
from bouton.ops.fast_weights import fast_weights, fast_weights_reference, fla

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
MISSING = [name for name in ("triton", "fla") if importlib.util.find_spec(name) is None]
interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs in the process of test_under_the_interpreter")
DONE_BY = ("hebb", "delta")
SHAPES = {
    "ragged": (2, 2, 37, 5, 19),
    "beyond a chunk": (1, 2, 90, 16, 24),
    "two tokens": (1, 2, 2, 4, 6),
    "decoding": (2, 2, 1, 16, 20),
}


def one_call(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor | None, scale: float, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One sequence, (1, T, H, .), written as the package's documentation states it: decay, write, then read."""
    outs = []
    for t in range(q.shape[1]):
        state = state * g[:, t].exp()[..., None]
        error = v[:, t, :, None]
        if beta is not None:
            error = beta[:, t, :, None, None] * (error - k[:, t, :, None] @ state)
        state = state + k[:, t, :, :, None] * error
        outs.append(scale * q[:, t, :, None] @ state)
    return torch.cat(outs, dim=2).transpose(1, 2), state


def stand_in(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor | None = None,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    chunk_size: int = 64,
) -> tuple[Tensor, Tensor | None]:
    """chunk_gla, and with ``beta`` chunk_gated_delta_rule, whose decays have no key dimension."""
    g = g if beta is None else g[..., None]
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if cu_seqlens is None:
        pieces = [slice(i, i + 1) for i in range(len(q))]
        cut = [[None if x is None else x[piece] for x in (q, k, v, g, beta)] for piece in pieces]
    else:
        assert len(q) == 1 and cu_seqlens.dtype == torch.int64
        pieces = [slice(a, b) for a, b in itertools.pairwise(cu_seqlens.tolist())]
        cut = [[None if x is None else x[:, piece] for x in (q, k, v, g, beta)] for piece in pieces]
    shape = (len(pieces), q.shape[2], q.shape[3], v.shape[3])
    initial_state = q.new_zeros(shape) if initial_state is None else initial_state
    assert initial_state.shape == shape
    done = [one_call(*x, scale, initial_state[i : i + 1]) for i, x in enumerate(cut)]  # type: ignore[arg-type]
    out = torch.cat([out for out, _ in done], dim=0 if cu_seqlens is None else 1)
    return out, torch.cat([state for _, state in done]) if output_final_state else None


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fla, "_functions", lambda: SimpleNamespace(gla=stand_in, delta=stand_in))


def make_case(batch: int, heads: int, tokens: int, rank: int, width: int, low: float = 0.6) -> dict[str, Tensor]:
    """float64 numbers that float32 holds exactly."""
    g = torch.Generator().manual_seed(tokens + width)
    unit = [torch.randn(batch, heads, tokens, rank, generator=g) for _ in range(2)]
    q, k = (torch.nn.functional.normalize(x, dim=-1) for x in unit)
    case = {
        "q": q,
        "k": k,
        "v": torch.randn(batch, heads, tokens, width, generator=g),
        "eta": 0.05 + 0.9 * torch.rand(batch, heads, tokens, generator=g),
        "rho_f": low + (0.99 - low) * torch.rand(heads, generator=g),
        "fast": torch.randn(batch, heads, rank, width, generator=g),
    }
    return {name: x.double() for name, x in case.items()}


def make_starts(batch: int, tokens: int, first: bool) -> Tensor:
    """Documents of several lengths, one token among them; the first token of a row starts one, or does not."""
    starts = torch.zeros(batch, tokens, dtype=torch.bool)
    starts[:, 3:5] = True
    starts[0, tokens // 2] = True
    starts[0, 0], starts[1:, 0] = first, not first
    return starts


def run(case: dict[str, Tensor], which: str, rule: str, starts: Tensor | None, initial: bool) -> dict[str, Tensor]:
    """Results and gradients; ``which``: "definition", "function" (as it is called) or "op" (float32, by name)."""
    dtype = torch.float32 if which == "op" else torch.float64
    x = {name: value.to(dtype).requires_grad_() for name, value in case.items()}
    inputs = (x["q"], x["k"], x["v"], x["eta"])
    used = x if initial else {name: value for name, value in x.items() if name != "fast"}
    fast = x["fast"] if initial else torch.zeros_like(x["fast"])
    if which == "definition":
        off = torch.zeros_like(x["rho_f"])
        state = {"fast": fast, "slow": torch.zeros_like(fast)}
        read, after = fast_weights_reference(
            *inputs, rho_f=x["rho_f"], rho_s=off, eta_s=off, rule=rule, state=state, starts=starts
        )
        final = after["fast"]
    elif which == "function":
        read, final = fla.fast_weights_fla(*inputs, rho_f=x["rho_f"], rule=rule, fast=fast, starts=starts)
    else:
        read, after = fast_weights(
            *inputs, rho_f=x["rho_f"], rho_s=0.9, eta_s=0.0, rule=rule, backend="triton",
            state={"fast": fast} if initial else None, starts=starts,
        )  # fmt: skip
        assert after.keys() == {"fast"}
        final = after["fast"]
    g = torch.Generator().manual_seed(1)
    loss = sum((y * torch.randn(y.shape, generator=g).to(dtype)).sum() for y in (read, final))
    assert isinstance(loss, Tensor)
    grads = torch.autograd.grad(loss, list(used.values()))
    return {"read": read, "final": final} | {f"d{name}": y for name, y in zip(used, grads, strict=True)}


def relative(name: str, actual: Tensor, expected: Tensor) -> float:
    """The gradient of a decay is a sum of terms of either sign over all tokens; it may cancel, their rounding not."""
    least = 10.0 if name == "drho_f" else 1e-2
    return float(((actual.double() - expected).norm() / expected.norm().clamp_min(least)).detach())


KINDS = ["none", "within", "first"]  # documents


def documents(kind: str, batch: int, tokens: int) -> Tensor | None:
    if kind == "none":
        return None
    return make_starts(batch, max(tokens, 5), kind == "first")[:, :tokens]


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("rule", DONE_BY)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("initial", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_asked_for_is_the_definition(shape: str, initial: bool, kind: str, rule: str) -> None:
    case = make_case(*SHAPES[shape])
    starts = documents(kind, SHAPES[shape][0], SHAPES[shape][2])
    exact = run(case, "definition", rule, starts, initial)
    for name, found in run(case, "function", rule, starts, initial).items():
        torch.testing.assert_close(found, exact[name], rtol=1e-9, atol=1e-11, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("rule", DONE_BY)
def test_any_split_equals_the_whole(rule: str) -> None:
    x = make_case(2, 2, 21, 4, 5)
    starts = make_starts(2, 21, first=False)

    def part(begin: int, end: int, fast: Tensor) -> tuple[Tensor, Tensor]:
        cut = (x[name][:, :, begin:end] for name in ("q", "k", "v", "eta"))
        return fla.fast_weights_fla(*cut, rho_f=x["rho_f"], rule=rule, fast=fast, starts=starts[:, begin:end])

    whole, final = part(0, 21, x["fast"])
    for bounds in (list(range(22)), [0, 1, 8, 20, 21]):
        fast, reads = x["fast"], []
        for begin, end in itertools.pairwise(bounds):
            read, fast = part(begin, end, fast)
            reads.append(read)
        torch.testing.assert_close(torch.cat(reads, dim=2), whole, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(fast, final, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"rule": "oja"}, "no kernel for rule = oja"),
        ({"slow": True}, "no kernel for the consolidated part S: eta_s must be the number 0"),
        ({"v": torch.zeros(1, 1, 3, 4).double()}, "float32, not in float64"),
        ({"q": torch.zeros(1, 1, 3, 257)}, "a rank of at most 256, not 257"),
        ({"q": torch.zeros(1, 1, 0, 4), "v": torch.zeros(1, 1, 0, 4)}, "at least one token"),
        ({"rho_f": 0.0}, "rho_f of at least 0.1, not 0.0"),
    ],
)
def test_what_cannot_work_says_so_in_one_line(change: dict[str, Any], reason: str) -> None:
    given: dict[str, Any] = {"q": torch.zeros(1, 1, 3, 4), "v": torch.zeros(1, 1, 3, 4), "rho_f": 0.9}
    given |= {"rule": "delta", "slow": False}
    assert fla.refuses(**given) is None
    found = fla.refuses(**given | change)
    assert found is not None and reason in found and "\n" not in found


@pytest.mark.parametrize(
    ("capability", "version", "lacks"),
    [((9, 0), "3.6.0", True), ((9, 0), "3.7.1+git12", False), ((9, 0), "3.3.1", False), ((8, 0), "3.6.0", False)],
)
def test_a_wrong_backward_pass_is_known_beforehand(monkeypatch, capability, version, lacks) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(fla.triton_runtime, "interpreted", lambda: False)
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__=version))
    reason = fla.lacks_gradients.__wrapped__("delta")
    assert (reason is not None) == lacks
    assert fla.lacks_gradients.__wrapped__("hebb") is None


@pytest.mark.skipif(not MISSING, reason="flash-linear-attention is installed")
def test_without_the_package_the_reason_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fla.triton_runtime, "why_not", lambda: None)
    found = fla.why_not.__wrapped__()
    assert found is not None and "pip install fla-core" in found


@pytest.mark.skipif(INTERPRETED or torch.cuda.is_available(), reason="here the kernels can run")
def test_without_a_device_the_reason_is_said() -> None:
    x = torch.zeros(1, 1, 3, 4)
    with pytest.raises(KernelError, match="'fast_weights' cannot run on backend 'triton': does not run on cpu"):
        fast_weights(x, x, x, 0.5, rho_f=0.9, rho_s=0.9, eta_s=0.0, backend="triton")
    assert "CUDA" in (fla.why_not() or "") or "triton" in (fla.why_not() or "")


@interpreted
@pytest.mark.parametrize("rule", DONE_BY)
def test_the_stand_ins_are_the_functions(rule: str) -> None:
    """Against the token-by-token forms that the package tests its kernels with; decays may differ between tokens."""
    g = torch.Generator().manual_seed(2)
    q, k = (torch.nn.functional.normalize(torch.randn(2, 11, 3, 4, generator=g), dim=-1) for _ in range(2))
    v, state = torch.randn(2, 11, 3, 5, generator=g), torch.randn(2, 3, 4, 5, generator=g)
    decay, beta = -torch.rand(2, 11, 3, 4, generator=g), torch.rand(2, 11, 3, generator=g)
    name, function = {"hebb": ("gla", "gla"), "delta": ("gated_delta_rule", "gated_delta_rule")}[rule]
    naive = getattr(importlib.import_module(f"fla.ops.{name}.naive"), f"naive_recurrent_{function}")
    given = {"q": q, "k": k, "v": v} | ({"g": decay} if rule == "hebb" else {"g": decay[..., 0], "beta": beta})
    common = {"initial_state": state, "output_final_state": True}
    found = stand_in(**given, **common)
    if rule == "hebb":
        given["gk"] = given.pop("g")
    for x, y in zip(found, naive(**given, **common), strict=True):
        torch.testing.assert_close(x, y)


@interpreted
@pytest.mark.parametrize("rule", DONE_BY)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients(shape: str, kind: str, rule: str) -> None:
    case = make_case(*SHAPES[shape])
    starts = documents(kind, SHAPES[shape][0], SHAPES[shape][2])
    initial = kind != "none" or shape != "ragged"
    exact = run(case, "definition", rule, starts, initial)
    for name, found in run(case, "op", rule, starts, initial).items():
        error = relative(name, found, exact[name])
        assert error < (2e-5 if name == "drho_f" else 2e-6), f"{name}: relative error {error:.1e}"


@interpreted
@pytest.mark.parametrize("rule", DONE_BY)
def test_a_decay_near_the_least(rule: str) -> None:
    case = make_case(1, 3, 70, 16, 20, low=fla.LEAST_DECAY)
    exact = run(case, "definition", rule, None, True)
    for name, found in run(case, "op", rule, None, True).items():
        error = relative(name, found, exact[name])
        assert error < (2e-4 if name == "drho_f" else 5e-6), f"{name}: relative error {error:.1e}"


@interpreted
def test_the_interpreter_is_taken_by_name_alone() -> None:
    case = {name: x.float() for name, x in make_case(1, 2, 9, 4, 6).items()}
    inputs = [case[name] for name in ("q", "k", "v", "eta")]
    common = {"rho_f": 0.9, "rho_s": 0.99, "rule": "delta"}
    exact, _ = fast_weights(*inputs, **common, eta_s=0.0, backend="torch")
    found, _ = fast_weights(*inputs, **common, eta_s=0.0, backend="triton")
    torch.testing.assert_close(found, exact)
    backends.configure()
    fast_weights(*inputs, **common, eta_s=0.0)
    (choice,) = backends.report()
    assert choice.backend != "triton" and "by name" in choice.refused["triton"]
    with pytest.raises(KernelError, match="cannot run on backend 'triton': has no kernel for the consolidated part S"):
        fast_weights(*inputs, **common, eta_s=0.1, backend="triton")


@interpreted
def test_a_wrong_backward_pass_is_refused_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fla, "lacks_gradients", lambda rule: f"has no backward pass for rule = {rule} here")
    x = torch.ones(1, 1, 3, 4)
    common = {"rho_f": 0.9, "rho_s": 0.9, "eta_s": 0.0, "rule": "delta", "backend": "triton"}
    fast_weights(x, x, x, 0.5, **common)
    with torch.no_grad():
        fast_weights(x, x, x, torch.tensor(0.5, requires_grad=True), **common)
    with pytest.raises(KernelError, match="no backward pass for rule = delta here"):
        fast_weights(x, x, x, torch.tensor(0.5, requires_grad=True), **common)


@interpreted
def test_low_precision_around_it_changes_nothing() -> None:
    case = {name: x.bfloat16() for name, x in make_case(1, 2, 40, 4, 6).items()}
    inputs = [case[name] for name in ("q", "k", "v", "eta")]
    common = {"rho_f": 0.9, "rho_s": 0.99, "eta_s": 0.0, "backend": "triton"}
    exact, state = fast_weights(*(x.float() for x in inputs), **common)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        read, after = fast_weights(*inputs, **common)
    assert read.dtype == torch.bfloat16 and torch.equal(read, exact.bfloat16())
    assert torch.equal(after["fast"], state["fast"])


@interpreted
def test_a_compiled_graph_is_left_and_entered_again() -> None:
    case = {name: x.float() for name, x in make_case(1, 2, 9, 4, 6).items()}

    def loss(q: Tensor) -> Tensor:
        common = {"rho_f": 0.9, "rho_s": 0.99, "eta_s": 0.0, "backend": "triton"}
        read, state = fast_weights(q * 2, case["k"], case["v"], case["eta"], **common)
        return read.square().sum() + state["fast"].sum()

    gradients = []
    for function in (loss, torch.compile(loss, backend="aot_eager")):
        q = case["q"].clone().requires_grad_()
        function(q).backward()
        gradients.append(q.grad)
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="this is that process")
@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (pip install fla-core)")
def test_under_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-k"]
    command += ["stand_ins_are or values or near or interpreter_is or is_needed or precision or compiled", __file__]
    done = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    expected = len(DONE_BY) * (len(SHAPES) * len(KINDS) + 2) + 4
    assert f"{expected} passed" in done.stdout, done.stdout[-3000:]
