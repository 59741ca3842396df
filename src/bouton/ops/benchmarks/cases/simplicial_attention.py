"""2-simplicial attention against plain causal attention with as many keys as it has pairs."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from bouton.ops.benchmarks.case import BOTH, FORWARD, Case, Inputs, Run, Work, generator, of_backends, peer
from bouton.ops.simplicial_attention import OP, simplicial_attention, simplicial_attention_reference

W1, W2 = 32, 8
NAMES = ("q", "k1", "v1", "k2", "v2")
Shape = tuple[int, int, int, int]


def cases(device: str, shapes: str) -> list[Case]:
    """One layer."""
    if shapes == "small":
        return [_case((1, 2, 48, 16))]
    return [_case((8, 8, 2048, 64) if device == "cuda" else (1, 4, 512, 64))]


def make_inputs(shape: Shape, dtype: torch.dtype) -> Inputs:
    """All (B, H, T, D)."""
    random = generator()
    return {name: torch.randn(shape, generator=random).to(dtype) for name in NAMES}


def _execute(backend: str) -> Run:
    def run(x: Inputs) -> tuple[Tensor, ...]:
        out, state = simplicial_attention(x["q"], x["k1"], x["v1"], x["k2"], x["v2"], W1, W2, backend=backend)
        return out, state["keys1"], state["values2"]

    return run


def _exact(x: Inputs) -> tuple[Tensor, ...]:
    out, state = simplicial_attention_reference(x["q"], x["k1"], x["v1"], x["k2"], x["v2"], W1, W2)
    return out, state["keys1"], state["values2"]


def _case(shape: Shape) -> Case:
    batch, heads, tokens, dim = shape
    products = 4.0 * batch * heads * tokens * W1 * W2 * dim
    tensor = 4.0 * batch * heads * tokens * dim
    return Case(
        op=OP,
        name=f"{shape} w1={W1} w2={W2}",
        dims=dict(zip("BHTD", shape, strict=True)),
        inputs=partial(make_inputs, shape),
        trained=NAMES,
        executions=(
            *of_backends(OP, _execute),
            peer("sdpa", lambda x: F.scaled_dot_product_attention(x["q"], x["k1"], x["v1"], is_causal=True)),
        ),
        outputs=("out", "keys1", "values2"),
        exact=_exact,
        problems=(partial(make_inputs, (1, 2, 35, 8)),),
        out_like="q",
        limits={"*": 5e-6},
        gate="",
        work={FORWARD: Work(products, 6 * tensor), BOTH: Work(3.5 * products, 12 * tensor)},
    )
