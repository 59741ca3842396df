"""The oscillating activation against GELU, and against the formula as autograd and torch.compile run it."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from bouton.ops.benchmarks.case import BOTH, FORWARD, Case, Execution, Inputs, Run, Work, generator, of_backends, peer
from bouton.ops.oscillate import OP, oscillate, oscillate_reference


def cases(device: str, shapes: str) -> list[Case]:
    """A mixer's hidden layer of some rows."""
    if shapes == "small":
        return [_case(64, 48, compiled=False)]
    sizes = [(8192, 3072), (16384, 3072)] if device == "cuda" else [(2048, 1280)]
    return [_case(rows, width) for rows, width in sizes]


def make_inputs(rows: int, width: int, dtype: torch.dtype, offset: bool = True) -> Inputs:
    """x (rows, width) and one frequency, phase and (perhaps) offset per feature."""
    g = generator()
    inputs = {
        "x": torch.randn(rows, width, generator=g).to(dtype),
        "omega": 1 + 0.1 * torch.randn(width, generator=g),
        "phi": 0.1 * torch.randn(width, generator=g),
    }
    if offset:
        inputs["baseline"] = 0.1 * torch.randn(width, generator=g)
    return inputs


def _execute(backend: str) -> Run:
    return lambda x: (oscillate(x["x"], x["omega"], x["phi"], x.get("baseline"), backend=backend),)


def _exact(x: Inputs) -> tuple[Tensor, ...]:
    return (oscillate_reference(x["x"], x["omega"], x["phi"], x.get("baseline")),)


def _formula(x: Inputs) -> Tensor:
    """The definition in float32, of which autograd keeps what it needs."""
    return oscillate_reference(x["x"].float(), x["omega"], x["phi"], x["baseline"]).to(x["x"].dtype)


def _compiled(device: str, dtype: torch.dtype) -> Run:
    torch.compiler.reset()  # every size is compiled for itself
    compiled = torch.compile(_formula)
    return lambda x: (compiled(x),)


def _case(rows: int, width: int, compiled: bool = True) -> Case:
    bytes_of_x = 4.0 * rows * width
    return Case(
        op=OP,
        name=f"({rows}, {width})",
        dims={"rows": rows, "width": width},
        inputs=partial(make_inputs, rows, width),
        trained=("x", "omega", "phi", "baseline"),
        executions=(
            *of_backends(OP, _execute),
            peer("gelu", lambda x: F.gelu(x["x"])),
            peer("eager", _formula),
            *((Execution("torch.compile", _compiled, compiled=True),) if compiled else ()),
        ),
        outputs=("y",),
        exact=_exact,
        problems=(
            partial(make_inputs, 133, 20),
            partial(make_inputs, 70, 300),  # several tiles, none of them whole
            partial(make_inputs, 64, 128, offset=False),
        ),
        out_like="x",
        limits={"*": 2e-6},
        gate="",
        work={FORWARD: Work(bytes=2 * bytes_of_x), BOTH: Work(bytes=5 * bytes_of_x)},
    )
