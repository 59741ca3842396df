"""The spiking neurons against snnTorch, SpikingJelly, torch loops and torch.compile.

Two forms of every loop are always there: one that indexes the currents token by token, as the packages' tutorials do,
and one that takes them apart once. The first makes autograd add up a whole gradient for every token, O(T^2), so a ratio
to it alone would flatter any kernel by a factor of several.

What is timed has the default reset and surrogate. The others are cases that are checked alone, each with a gain, a
state and documents.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bouton.ops.benchmarks.case import BOTH, FORWARD, Case, Execution, Inputs, Run, Work, generator, of_backends
from bouton.ops.lif import OP, SURROGATES, lif_reference, lif_scan, rlif_scan
from bouton.ops.lif.reference import lif_step, spike

Shape = tuple[int, int, int]  # B, T, H
# Drive of the recurrent neurons -> about the share of the tokens at which they fire.
DRIVES = {"4 %": 0.47, "10 %": 0.9}
# A potential within rounding of the threshold may fall either way: none of the gate's problems has one.
LIMITS = {"*": 5e-5, "spikes": 1e-6, "u": 2e-6}
CHUNK = 16  # tokens that one compiled graph unrolls; all of 256 take minutes to compile
KIND: dict[str, Any] = {
    "reset": "subtract", "reset_order": "after_decay", "surrogate": "atan", "alpha": 2.0, "detach_reset": True,
}  # fmt: skip
SUBTRACT, BEFORE = {"reset": "subtract"}, {"reset": "subtract", "reset_order": "before_decay"}
KINDS: tuple[dict[str, Any], ...] = (
    *({**kind, "detach_reset": detach} for kind in (SUBTRACT, BEFORE, {"reset": "zero"}) for detach in (True, False)),
    {"reset": "none"},
    *({"surrogate": name, "alpha": alpha, "detach_reset": False} for name, alpha in SURROGATES.items()),
)


def cases(device: str, shapes: str) -> list[Case]:
    """Neurons by themselves, and with a recurrent map at two rates of firing.

    On a GPU all kinds are checked, and there are also more neurons, and few with a map: one launch for all tokens.
    """
    if shapes == "small":
        return [_plain((2, 9, 6)), _recurrent((2, 9, 6), "10 %"), *(_check(KINDS[1], r) for r in (False, True))]
    found = [_plain((32, 256, 512)), *(_recurrent((32, 64, 512), rate) for rate in DRIVES)]
    sweep = [_plain((32, t, 512)) for t in (32, 64, 128, 256)]
    checks = [_check(kind, recurrent) for recurrent in (False, True) for kind in KINDS]
    more = [_plain((32, 1024, 2048)), *(_recurrent((batch, 64, 128), "10 %") for batch in (32, 512))]
    issue = [*checks, *found, *more] if device == "cuda" else found
    return {"issue": issue, "sweep": sweep, "all": [*checks, *found, *more, *sweep]}[shapes]


def make_inputs(shape: Shape, drive: float, recurrent: bool, dtype: torch.dtype) -> Inputs:
    """Currents (B, T, H), decays and thresholds (H,), and a recurrent map (H, H)."""
    g = generator()
    width = shape[2]
    inputs = {
        "x": (drive * torch.randn(shape, generator=g)).to(dtype),
        "beta": 0.85 + 0.1 * torch.rand(width, generator=g),
        "theta": torch.ones(width),
    }
    if recurrent:
        inputs["w_rec"] = torch.randn(width, width, generator=g) * (0.2 / width**0.5)
    return inputs


def make_all_inputs(shape: Shape, drive: float, recurrent: bool, dtype: torch.dtype) -> Inputs:
    """Those, thresholds that differ, and a gain (H,), a state (B, H) each, and beginnings of documents (B, T)."""
    g = generator(1)
    batch, tokens, width = shape
    return make_inputs(shape, drive, recurrent, dtype) | {
        "theta": 0.8 + 0.4 * torch.rand(width, generator=g),
        "gain": 0.7 + 0.6 * torch.rand(width, generator=g),
        "u0": torch.randn(batch, width, generator=g),
        "s0": (torch.rand(batch, width, generator=g) < 0.3).float(),
        "starts": torch.rand(batch, tokens, generator=g) < 0.1,
    }


def _execute(kind: dict[str, Any], backend: str) -> Run:
    def run(x: Inputs) -> tuple[Tensor, ...]:
        optional = {name: x.get(name) for name in ("gain", "u0", "s0", "starts")}
        options: dict[str, Any] = {**optional, **kind, "backend": backend}
        if "w_rec" in x:
            return rlif_scan(x["x"], x["w_rec"], x["beta"], x["theta"], **options)
        return lif_scan(x["x"], x["beta"], x["theta"], **options)

    return run


def _definition(kind: dict[str, Any]) -> Run:
    def run(x: Inputs) -> tuple[Tensor, ...]:
        zeros = x["x"].new_zeros(x["x"].shape[0], x["x"].shape[2])
        gain, w_rec, starts = x.get("gain"), x.get("w_rec"), x.get("starts")
        state = x.get("u0", zeros), x.get("s0", zeros)
        return lif_reference(x["x"], x["beta"], x["theta"], gain, w_rec, *state, starts, **kind)

    return run


DEFINITION = _definition(KIND)


def _columns(x: Tensor, apart: bool) -> Callable[[int], Tensor]:
    """Token t of x (B, T, H): from a list that was made once, or by indexing each time."""
    if apart:
        columns = x.unbind(1)
        return lambda t: columns[t]
    return lambda t: x[:, t]


def _silence(x: Inputs) -> Tensor:
    """Zeros (B, H) in the dtype of the constants, in which the peers then go on."""
    return x["beta"].new_zeros(x["x"].shape[0], x["x"].shape[2])


def _snntorch(apart: bool) -> Callable[[str, torch.dtype], Run]:
    def make(device: str, dtype: torch.dtype) -> Run:
        import snntorch

        atan = snntorch.surrogate.atan(2.0)

        def run(x: Inputs) -> tuple[Tensor, ...]:
            cell = snntorch.Leaky(beta=0.9, spike_grad=atan)
            cell._buffers["beta"] = x["beta"]  # learned, as with learn_beta, but the very tensor of the others
            cell._buffers["threshold"] = x["theta"]
            at = _columns(x["x"], apart)
            s = u = _silence(x)
            spikes = []
            for t in range(x["x"].shape[1]):
                current = at(t) if "w_rec" not in x else at(t) + s @ x["w_rec"].T
                s, u = cell(current, u)
                spikes.append(s)
            return (torch.stack(spikes, dim=1).to(x["x"].dtype),)

        return run

    return make


def _spikingjelly(device: str, dtype: torch.dtype) -> Run:
    from spikingjelly.activation_based import functional, neuron, surrogate

    # Its order of reset differs: spikes are not those of the others, the work is the same. beta is 0.9 for all neurons.
    node = neuron.LIFNode(
        tau=10.0, decay_input=False, v_reset=None, detach_reset=True, step_mode="m",
        surrogate_function=surrogate.ATan(2.0),
    ).to(device)  # fmt: skip

    def run(x: Inputs) -> tuple[Tensor, ...]:
        functional.reset_net(node)
        return (node(x["x"].transpose(0, 1)).transpose(0, 1) + 0 * x["beta"],)

    return run


def _loop(apart: bool) -> Callable[[str, torch.dtype], Run]:
    def make(device: str, dtype: torch.dtype) -> Run:
        def run(x: Inputs) -> tuple[Tensor, ...]:
            at = _columns(x["x"], apart)
            s = u = _silence(x)
            spikes = []
            for t in range(x["x"].shape[1]):
                u, s = lif_step(at(t), u, s, x["beta"], x["theta"], None, x.get("w_rec"), **KIND)
                spikes.append(s)
            return (torch.stack(spikes, dim=1).to(x["x"].dtype),)

        return run

    return make


def _compiled(device: str, dtype: torch.dtype) -> Run:
    def chunk(x: Tensor, u: Tensor, s: Tensor, beta: Tensor, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        spikes = []
        for current in x.unbind(1):
            u = beta * u + current - theta * s.detach()
            s = spike(u - theta, "atan", 2.0)
            spikes.append(s)
        return torch.stack(spikes, dim=1), u, s

    compiled = torch.compile(chunk)

    def run(x: Inputs) -> tuple[Tensor, ...]:
        u = s = _silence(x)
        parts = []
        for piece in x["x"].split(CHUNK, dim=1):
            spikes, u, s = compiled(piece, u, s, x["beta"], x["theta"])
            parts.append(spikes)
        return (torch.cat(parts, dim=1).to(x["x"].dtype),)

    return run


def _case(name: str, shape: Shape, drive: float, recurrent: bool, peers: tuple[Execution, ...]) -> Case:
    b, t, h = shape
    numbers = 4.0 * b * t * h
    # The least: x in, spikes out; and the gradient of those and x again in, the gradient of x out.
    work = {FORWARD: Work(bytes=2 * numbers), BOTH: Work(bytes=5 * numbers)}
    if recurrent:
        product = 2.0 * b * t * h * h
        work = {FORWARD: Work(flops=product, bytes=2 * numbers), BOTH: Work(flops=3 * product, bytes=5 * numbers)}
    return Case(
        op=OP,
        name=name,
        dims={"B": b, "T": t, "H": h},
        inputs=partial(make_inputs, shape, drive, recurrent),
        trained=("x", "beta", *(("w_rec",) if recurrent else ())),
        executions=(*of_backends(OP, partial(_execute, KIND)), *peers),
        outputs=("spikes", "u"),
        exact=DEFINITION,
        problems=tuple(partial(make_inputs, small, drive, recurrent) for small in _small(recurrent)),
        out_like="x",
        limits=LIMITS,
        gate=name.split(" (")[0] + f" {drive}",
        work=work,
    )


def _check(changed: dict[str, Any], recurrent: bool) -> Case:
    """One kind of neuron, which is not timed."""
    kind = {**KIND, **changed}
    small = _small(recurrent)
    words = [str(value) for name, value in kind.items() if name not in ("alpha", "detach_reset")]
    name = " ".join(("recurrent" if recurrent else "plain", *words, *(() if kind["detach_reset"] else ("attached",))))
    problems = tuple(partial(make_all_inputs, shape, 0.9, recurrent) for shape in small)
    return Case(
        op=OP,
        name=name,
        dims=dict(zip("BTH", small[0], strict=True)),
        inputs=problems[0],
        trained=("x",),
        executions=of_backends(OP, partial(_execute, kind)),
        outputs=("spikes", "u"),
        exact=_definition(kind),
        problems=problems,
        out_like="x",
        limits=LIMITS,
        gate=name,
        passes=(),
    )


def _small(recurrent: bool) -> tuple[Shape, ...]:
    """Shapes of the gate's problems; of many neurons with a map, every token is a launch by itself."""
    return ((2, 23, 20), (3, 40, 16), *(((2, 7, 144),) if recurrent else ()))


def _plain(shape: Shape) -> Case:
    peers = (
        Execution("snntorch x[t]", _snntorch(apart=False)),
        Execution("snntorch unbind", _snntorch(apart=True)),
        Execution("spikingjelly", _spikingjelly),
        Execution("torch loop unbind", _loop(apart=True)),  # before the other: ratios are to it where no package is
        Execution("torch loop x[t]", _loop(apart=False)),
        Execution("torch.compile", _compiled, compiled=True),
    )
    return _case(f"plain {shape}", shape, 0.7, False, peers)


def _recurrent(shape: Shape, rate: str) -> Case:
    peers = (
        Execution("snntorch x[t]", _snntorch(apart=False)),
        Execution("snntorch unbind", _snntorch(apart=True)),
        Execution("torch loop unbind", _loop(apart=True)),
        Execution("torch loop x[t]", _loop(apart=False)),
    )
    return _case(f"recurrent {shape}, firing {rate}", shape, DRIVES[rate], True, peers)
