"""The recurrences against the sum of their two inputs, the least that any pass over them must do."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from bouton.ops.benchmarks.case import BOTH, FORWARD, Case, Execution, Inputs, Run, Work, generator, of_backends, peer
from bouton.ops.scan import OP, affine_scan, max_affine_scan, scan_reference

Shape = tuple[int, int, int]  # B, T, N
LONGEST_LOOP = 512


def cases(device: str, shapes: str) -> list[Case]:
    """Traces of a layer's features: decays per channel, and (affine alone) one for every token and channel."""
    if shapes == "small":
        return [_case("max-affine", (2, 33, 5), True)]
    issue: Shape = (8, 4096, 768) if device == "cuda" else (8, 512, 320)
    lengths = (512, 2048, 8192) if device == "cuda" else (128, 512, 2048, 8192)
    found = [_case(kind, issue, True) for kind in ("affine", "max-affine")] + [_case("affine", issue, False)]
    sweep = [_case(kind, (1, t, issue[2]), True) for kind in ("affine", "max-affine") for t in lengths]
    return {"issue": found, "sweep": sweep, "all": found + sweep}[shapes]


def make_inputs(kind: str, shape: Shape, constant: bool, dtype: torch.dtype) -> Inputs:
    """x (B, T, N), decays (N,) or (B, T, N), a state, and floors (N,) that a part of the steps meets."""
    g = generator()
    inputs = {
        "x": torch.randn(shape, generator=g).to(dtype),
        "a": 0.8 + 0.19 * torch.rand(shape[2:] if constant else shape, generator=g),
        "state": torch.randn(shape[0], shape[2], generator=g),
    }
    if kind == "max-affine":
        inputs["floor"] = 0.3 * torch.randn(shape[2], generator=g)
    return inputs


def _execute(backend: str) -> Run:
    def run(x: Inputs) -> tuple[Tensor, ...]:
        if "floor" in x:
            return max_affine_scan(x["a"], x["x"], x["floor"], x["state"], backend=backend)
        return affine_scan(x["a"], x["x"], x["state"], backend=backend)

    return run


def _exact(x: Inputs) -> tuple[Tensor, ...]:
    return scan_reference(x["a"], x["x"], x.get("floor"), x["state"], None)


def _case(kind: str, shape: Shape, constant: bool) -> Case:
    executions = [*of_backends(OP, _execute), peer("sum", lambda x: x["x"] + x["a"])]
    if shape[1] <= LONGEST_LOOP:
        executions.append(Execution("naive", lambda device, dtype: _exact, ours=True))
    bytes_of_x = 4.0 * shape[0] * shape[1] * shape[2]
    inputs = partial(make_inputs, kind)
    arrays = 2 if constant else 3
    return Case(
        op=OP,
        name=f"{kind} {shape}, a per {'channel' if constant else 'number'}",
        dims=dict(zip("BTN", shape, strict=True)),
        inputs=partial(inputs, shape, constant),
        trained=("x", "a"),
        executions=tuple(executions),
        outputs=("y", "state"),
        exact=_exact,
        problems=(partial(inputs, (2, 133, 20), constant), partial(inputs, (1, 64, 300), constant)),
        out_like="x",
        limits={"*": 1e-5},
        gate=f"{kind} {constant}",
        work={FORWARD: Work(bytes=arrays * bytes_of_x), BOTH: Work(bytes=(2 * arrays + 1) * bytes_of_x)},
    )
