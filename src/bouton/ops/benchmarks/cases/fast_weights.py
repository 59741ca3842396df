"""Fast weights against one plain matrix product of the values' width, the map that they accompany."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bouton.ops.benchmarks.case import BOTH, FORWARD, Case, Execution, Inputs, Run, Work, generator, of_backends, peer
from bouton.ops.fast_weights import OP, fast_weights, fast_weights_reference, fla

Shape = tuple[int, int, int, int]  # B, H, T, width of the values per head
LIMITS = {"*": 2e-5}
LONGEST_LOOP = 512


def cases(device: str, shapes: str) -> list[Case]:
    """Rules hebb and delta; the sweep goes over T. On a GPU also without S, which is where a library has kernels."""
    if shapes == "small":
        return [_case("delta", (1, 2, 96, 16), 8)]
    issue: Shape = (8, 4, 2048, 192) if device == "cuda" else (8, 4, 512, 80)
    sweep = (512, 2048, 8192) if device == "cuda" else (128, 512, 2048, 8192)
    found = [_case(rule, issue, 16) for rule in ("hebb", "delta")]
    without = [_case(rule, issue, 16, slow=False) for rule in ("hebb", "delta")]
    lengths = [_case(rule, (1, 4, t, issue[3]), 16) for rule in ("hebb", "delta") for t in sweep]
    return {
        "issue": [*found, *without] if device == "cuda" else found,
        "sweep": lengths,
        "all": [*found, *without, _case("oja", issue, 16), *lengths],
    }[shapes]


def make_inputs(shape: Shape, rank: int, stateful: bool, slow: bool, dtype: torch.dtype) -> Inputs:
    """Unit queries and keys (B, H, T, rank), values, rates per token, decays per head; perhaps S and a state."""
    batch, heads, tokens, width = shape
    g = generator()
    q, k = (F.normalize(torch.randn(batch, heads, tokens, rank, generator=g), dim=-1).to(dtype) for _ in range(2))
    inputs = {
        "q": q,
        "k": k,
        "v": torch.randn(shape, generator=g).to(dtype),
        "eta": 0.3 + 0.4 * torch.rand(batch, heads, tokens, generator=g),
        "rho_f": torch.linspace(0.93, 0.96, heads),
    }
    if slow:
        inputs["rho_s"] = torch.linspace(0.99, 0.996, heads)
        inputs["eta_s"] = torch.linspace(0.01, 0.02, heads)
    if stateful:
        for name in ("fast_0", "slow_0") if slow else ("fast_0",):
            inputs[name] = torch.randn(batch, heads, rank, width, generator=g)
    return inputs


def _state(x: Inputs) -> dict[str, Tensor]:
    return {name.removesuffix("_0"): x[name] for name in ("fast_0", "slow_0") if name in x}


def execute(rule: str, backend: str) -> Run:
    """Our op on one backend."""
    run_op: Any = partial(fast_weights, rule=rule, backend=backend)

    def run(x: Inputs) -> tuple[Tensor, ...]:
        constants = {"rho_f": x["rho_f"], "rho_s": x.get("rho_s", 0.0), "eta_s": x.get("eta_s", 0.0)}
        read, after = run_op(x["q"], x["k"], x["v"], x["eta"], state=_state(x), **constants)
        return read, *after.values()

    return run


def definition(rule: str) -> Run:
    """The recurrence token by token, in the precision of its inputs."""

    def run(x: Inputs) -> tuple[Tensor, ...]:
        off = torch.zeros_like(x["rho_f"])
        state = _state(x)
        if state and "slow" not in state:
            state["slow"] = torch.zeros_like(state["fast"])
        read, after = fast_weights_reference(
            x["q"],
            x["k"],
            x["v"],
            x["eta"],
            rho_f=x["rho_f"],
            rho_s=x.get("rho_s", off),
            eta_s=x.get("eta_s", off),
            rule=rule,
            state=state or None,
        )
        return (read, after["fast"], after["slow"]) if "eta_s" in x else (read, after["fast"])

    return run


def _case(rule: str, shape: Shape, rank: int, slow: bool = True) -> Case:
    batch, heads, tokens, width = shape
    loop = definition(rule)
    reason = fla.lacks(rule, slow) or fla.lacks_gradients(rule)  # the gate asks for gradients
    refused = {} if reason is None else {"triton": reason}
    executions = [*of_backends(OP, partial(execute, rule), refused), peer("matmul", _product)]
    if tokens <= LONGEST_LOOP:
        executions.append(Execution("naive", lambda device, dtype: loop, ours=True))
    # The recurrence itself: a read of F + S, and one write to F (delta: also the prediction), per token and head.
    products = 3 if rule == "delta" else 2
    variant = rule if slow else f"{rule} without S"
    flops = 2.0 * products * batch * heads * tokens * rank * width
    return Case(
        op=OP,
        name=f"{variant} {shape} rank {rank}",
        dims={"B": batch, "H": heads, "T": tokens, "width": width, "rank": rank},
        inputs=partial(make_inputs, shape, rank, False, slow),
        trained=("q", "k", "v", "eta"),
        executions=tuple(executions),
        outputs=("read", "fast", "slow") if slow else ("read", "fast"),
        exact=loop,
        problems=(
            partial(make_inputs, (1, 2, 150, 12), 8, False, slow),
            partial(make_inputs, (2, 2, 70, 12), 8, True, slow),
        ),
        out_like="v",
        limits=LIMITS,
        gate=variant,
        work={FORWARD: Work(flops=flops), BOTH: Work(flops=3 * flops)},
    )


def _product(x: Inputs) -> Tensor:
    """x W for an x of the values' shape, all heads together, and its gradients in x alone."""
    v = x["v"]
    batch, heads, tokens, width = v.shape
    rows = v.transpose(1, 2).reshape(batch * tokens, heads * width)
    y = rows @ v.new_ones(heads * width, heads * width)
    return y.view(batch, tokens, heads, width).transpose(1, 2)
