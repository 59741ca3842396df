"""The oscillating activation against GELU."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from bouton.ops.benchmarks.case import BOTH, FORWARD, Case, Inputs, Run, Work, generator, of_backends, peer
from bouton.ops.oscillate import OP, oscillate, oscillate_reference


def cases(device: str, shapes: str) -> list[Case]:
    """A mixer's hidden layer of some rows."""
    if shapes == "small":
        return [_case(64, 48)]
    return [_case(rows, width) for rows, width in ([(16384, 3072)] if device == "cuda" else [(2048, 1280)])]


def make_inputs(rows: int, width: int, dtype: torch.dtype) -> Inputs:
    """x (rows, width) and one frequency, phase and offset per feature."""
    g = generator()
    return {
        "x": torch.randn(rows, width, generator=g).to(dtype),
        "omega": 1 + 0.1 * torch.randn(width, generator=g),
        "phi": 0.1 * torch.randn(width, generator=g),
        "baseline": 0.1 * torch.randn(width, generator=g),
    }


def _execute(backend: str) -> Run:
    return lambda x: (oscillate(x["x"], x["omega"], x["phi"], x["baseline"], backend=backend),)


def _exact(x: Inputs) -> tuple[Tensor, ...]:
    return (oscillate_reference(x["x"], x["omega"], x["phi"], x["baseline"]),)


def _case(rows: int, width: int) -> Case:
    bytes_of_x = 4.0 * rows * width
    return Case(
        op=OP,
        name=f"({rows}, {width})",
        dims={"rows": rows, "width": width},
        inputs=partial(make_inputs, rows, width),
        trained=("x", "omega", "phi", "baseline"),
        executions=(*of_backends(OP, _execute), peer("gelu", lambda x: F.gelu(x["x"]))),
        outputs=("y",),
        exact=_exact,
        problems=(partial(make_inputs, 133, 20),),
        out_like="x",
        limits={"*": 2e-6},
        gate="",
        work={FORWARD: Work(bytes=2 * bytes_of_x), BOTH: Work(bytes=5 * bytes_of_x)},
    )
