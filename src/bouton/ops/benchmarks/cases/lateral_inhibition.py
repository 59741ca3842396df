"""Lateral inhibition of keys against a copy of them."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from bouton.ops.benchmarks.case import BOTH, FORWARD, Case, Inputs, Run, Work, generator, of_backends, peer
from bouton.ops.lateral_inhibition import OP, lateral_inhibition, lateral_inhibition_reference

STRENGTH, WINDOW = 0.3, 4
Shape = tuple[int, int, int, int]


def cases(device: str, shapes: str) -> list[Case]:
    """Keys of one layer."""
    if shapes == "small":
        return [_case((1, 2, 96, 16))]
    return [_case((8, 16, 4096, 64) if device == "cuda" else (4, 4, 2048, 64))]


def make_inputs(shape: Shape, dtype: torch.dtype) -> Inputs:
    """x (B, H, T, D)."""
    return {"x": torch.randn(shape, generator=generator()).to(dtype)}


def _execute(backend: str) -> Run:
    def run(x: Inputs) -> tuple[Tensor, ...]:
        y, state = lateral_inhibition(x["x"], STRENGTH, WINDOW, backend=backend)
        return y, state["keys"]

    return run


def _exact(x: Inputs) -> tuple[Tensor, ...]:
    y, keys = lateral_inhibition_reference(x["x"], STRENGTH, WINDOW)
    return y, torch.stack(keys)


def _case(shape: Shape) -> Case:
    bytes_of_x = 4.0 * shape[0] * shape[1] * shape[2] * shape[3]
    return Case(
        op=OP,
        name=str(shape),
        dims=dict(zip("BHTD", shape, strict=True)),
        inputs=partial(make_inputs, shape),
        trained=("x",),
        executions=(*of_backends(OP, _execute), peer("copy", lambda x: x["x"].clone())),
        outputs=("y", "keys"),
        exact=_exact,
        problems=(partial(make_inputs, (2, 2, 133, 8)),),
        out_like="x",
        limits={"*": 2e-6},
        gate="",
        work={FORWARD: Work(bytes=2 * bytes_of_x), BOTH: Work(bytes=4 * bytes_of_x)},
    )
