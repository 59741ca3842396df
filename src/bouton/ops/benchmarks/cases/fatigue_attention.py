"""Fatigue attention against plain attention: whole sequences, and one decoding step."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from bouton.ops.benchmarks.case import (
    BOTH,
    FORWARD,
    Case,
    Execution,
    Inputs,
    Run,
    Work,
    generator,
    of_backends,
    peer,
)
from bouton.ops.fatigue_attention import OP, Kinetics, fatigue_attention, reference

Shape = tuple[int, int, int, int]  # B, H, T, D
TYPICAL = (0.8465, 0.55, 0.7, 3.0, -0.8, 1.0, 0.9753, 1.0, 1.0, 1e-3)
OUTPUTS = ("out", "calcium", "pool")
LIMITS = {"*": 5e-4, "out": 1e-6, "dq": 1e-6, "dk": 1e-6, "dv": 1e-6, "calcium": 1e-6, "pool": 1e-6}
LONGEST_LOOP = 512  # tokens up to which the loop over queries is timed
CACHED = 4096

ISSUE: dict[str, tuple[Shape, ...]] = {
    "cpu": ((4, 4, 512, 64), (1, 8, 2048, 64), (1, 4, 2048, 128)),
    "cuda": ((4, 16, 4096, 64), (4, 16, 4096, 128)),
}
SWEEP: dict[str, tuple[Shape, ...]] = {
    "cpu": tuple((1, 4, t, 64) for t in (128, 256, 512, 1024, 2048, 4096, 8192)),
    "cuda": tuple((4, 16, t, d) for d in (64, 128) for t in (512, 1024, 2048, 4096, 8192, 16384)),
}


def cases(device: str, shapes: str) -> list[Case]:
    """Sequences of the issue's sizes or of a sweep over T, and the decoding step."""
    if shapes == "small":
        return [_sequence("min", (1, 2, 96, 32), compiled=False), _step((1, 2, 1, 32), 64)]
    issue = ISSUE.get(device, ISSUE["cpu"])
    sweep = [_sequence("min", shape, compiled=device == "cuda") for shape in SWEEP.get(device, SWEEP["cpu"])]
    found = [_sequence("min", shape, compiled=True) for shape in issue]
    found.append(_step((1, 8, 1, 64) if device != "cuda" else (8, 16, 1, 64), CACHED))
    if shapes == "issue":
        return found
    if shapes == "sweep":
        return sweep
    return [*found, *(_sequence("mul", shape, compiled=False) for shape in issue), *sweep]


def make_inputs(shape: Shape, old: int, stateful: bool, jitter: float, dtype: torch.dtype) -> Inputs:
    """Normalised q (B, H, T, D) and k, v (B, H, old + T, D); kinetics of all heads; the state of ``old`` keys."""
    batch, heads, tokens, dim = shape
    g = generator()
    q = torch.randn(shape, generator=g)
    k, v = (torch.randn(batch, heads, old + tokens, dim, generator=g) for _ in range(2))
    spread = 1 - jitter * torch.rand(len(TYPICAL), heads, generator=g)
    inputs = {"q": F.rms_norm(q, (dim,)).to(dtype), "k": F.rms_norm(k, (dim,)).to(dtype), "v": v.to(dtype)}
    constants = torch.tensor(TYPICAL)[:, None] * spread
    inputs |= {name: row.clone() for name, row in zip(Kinetics._fields, constants, strict=True)}
    if stateful:
        inputs["calcium_0"] = torch.rand(batch, heads, old, generator=g)
        inputs["pool_0"] = 0.2 + 0.7 * torch.rand(batch, heads, old, generator=g)
    return inputs


def kinetics(x: Inputs) -> Kinetics:
    """The constants among the inputs."""
    return Kinetics(*(x[name] for name in Kinetics._fields))


def execute(rule: str, backend: str) -> Run:
    """Our op on one backend; a state among the inputs is carried along."""

    def run(x: Inputs) -> tuple[Tensor, ...]:
        state = {"calcium": x["calcium_0"], "pool": x["pool_0"]} if "calcium_0" in x else None
        out, after = fatigue_attention(x["q"], x["k"], x["v"], kinetics(x), state, rule=rule, backend=backend)
        if state is not None and not torch.is_grad_enabled():
            x["calcium_0"], x["pool_0"] = after["calcium"], after["pool"]
        return out, after["calcium"], after["pool"]

    return run


def definition(rule: str) -> Run:
    """The sequential definition, in the precision of its inputs."""

    def run(x: Inputs) -> tuple[Tensor, ...]:
        q, k, kin = x["q"], x["k"], kinetics(x)
        batch, heads, tokens, _ = q.shape
        old = k.shape[2] - tokens
        calcium = q.new_zeros(batch, heads, tokens, dtype=kin.r_max.dtype)
        pool = kin.r_max[:, None].expand(batch, heads, tokens)
        if old:
            calcium = torch.cat((x["calcium_0"], calcium), dim=-1)
            pool = torch.cat((x["pool_0"], pool), dim=-1)
        return reference.forward(q, k, x["v"], kin, calcium, pool, rule=rule, release="kinetic")

    return run


def _sequence(rule: str, shape: Shape, compiled: bool) -> Case:
    batch, heads, tokens, dim = shape
    # The first peer is what ratios are relative to.
    executions = [*of_backends(OP, partial(execute, rule)), peer("sdpa", _sdpa), *_plain_kernels()]
    # FlexAttention has no backward pass on the CPU; there the pass is reported as not run.
    flex = Execution("flex", partial(_flex, tokens), compiled=True) if compiled else Execution("flex", _not_compiled)
    executions.append(flex)
    loop = definition(rule)
    if tokens <= LONGEST_LOOP:
        executions.append(Execution("naive", lambda device, dtype: loop, ours=True))
    pairs = batch * heads * tokens * (tokens + 1) / 2
    return Case(
        op=OP,
        name=f"{rule} {shape}",
        dims={"B": batch, "H": heads, "T": tokens, "D": dim},
        inputs=partial(make_inputs, shape, 0, False, 0.0),
        trained=("q", "k", "v"),
        executions=tuple(executions),
        outputs=OUTPUTS,
        exact=loop,
        problems=(
            _problem((1, 2, 200, dim), 0, False),
            _problem((2, 1, 37, dim), 29, True),
        ),
        out_like="q",
        limits=LIMITS,
        gate=f"{rule} D={dim}",
        # Two matrix products per visible pair forward, five backward, two FLOPs per multiply-add.
        work={FORWARD: Work(flops=4 * dim * pairs), BOTH: Work(flops=14 * dim * pairs)},
    )


def _step(shape: Shape, cached: int) -> Case:
    batch, heads, _, dim = shape
    return Case(
        op=OP,
        name=f"min step {shape} with {cached} cached keys",
        dims={"B": batch, "H": heads, "cached": cached, "D": dim},
        inputs=partial(make_inputs, shape, cached, True, 0.0),
        trained=(),
        executions=(*of_backends(OP, partial(execute, "min")), peer("sdpa", _sdpa_of_one, passes=(FORWARD,))),
        outputs=OUTPUTS,
        exact=definition("min"),
        problems=(_problem((1, 2, 1, dim), 69, True), _problem((2, 1, 1, dim), 300, True)),
        out_like="q",
        limits=LIMITS,
        gate=f"min step D={dim}",
        # Keys and values are read once; the state, which plain attention does not have, is not counted.
        work={FORWARD: Work(4.0 * dim * batch * heads * (cached + 1), 8.0 * dim * batch * heads * (cached + 1))},
        passes=(FORWARD,),
    )


def _problem(shape: Shape, old: int, stateful: bool) -> Callable[[torch.dtype], Inputs]:
    return partial(make_inputs, shape, old, stateful, 0.05)


def _sdpa(x: Inputs) -> Tensor:
    return F.scaled_dot_product_attention(x["q"], x["k"], x["v"], is_causal=True)


def _sdpa_of_one(x: Inputs) -> Tensor:
    return F.scaled_dot_product_attention(x["q"], x["k"], x["v"])


def _flex(tokens: int, device: str, dtype: torch.dtype) -> Run:
    """Compiled FlexAttention with a causal block mask."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    torch.compiler.reset()  # every length is compiled for itself, and the number of variants is limited
    mask = create_block_mask(lambda b, h, q, k: q >= k, None, None, tokens, tokens, device=device)
    attention = torch.compile(flex_attention, dynamic=False)

    def run(x: Inputs) -> tuple[Tensor, ...]:
        return (attention(x["q"], x["k"], x["v"], block_mask=mask),)

    return run


def _not_compiled(device: str, dtype: torch.dtype) -> Run:
    raise RuntimeError("FlexAttention is compiled anew for every size: only at the sizes of shapes=issue, rule min")


def _plain_kernels() -> list[Execution]:
    """Our own kernels with the fatigue off, of the backends that offer ``plain_attention(q, k, v)`` (causal)."""
    from bouton.ops import fatigue_attention as package

    found = []
    for backend in ("rust", "triton"):
        kernel = getattr(getattr(package, backend, None), "plain_attention", None)
        if kernel is not None:
            found.append(Execution(f"{backend} off", partial(_plain, backend, kernel)))
    return found


def _plain(backend: str, kernel: Callable[[Tensor, Tensor, Tensor], Tensor], device: str, dtype: torch.dtype) -> Run:
    from bouton.ops.backends import refusals

    if (reason := refusals(OP, device).get(backend)) is not None:
        raise RuntimeError(reason)
    return lambda x: (kernel(x["q"], x["k"], x["v"]),)
