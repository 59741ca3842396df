"""Attention whose synapses tire: every key has a calcium level and a vesicle pool that depend on its own past use.

:mod:`.reference` has the equations.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from torch import Tensor, cat, compiler, is_grad_enabled
from torch.compiler import assume_constant_result

from bouton.ops import triton_runtime
from bouton.ops.backends import register_backend, select
from bouton.ops.fatigue_attention import reference, rust
from bouton.ops.fatigue_attention import torch as torch_backend
from bouton.ops.fatigue_attention import triton as triton_backend
from bouton.ops.fatigue_attention.reference import RELEASES, RULES, Kinetics

__all__ = ["RELEASES", "RULES", "Kinetics", "fatigue_attention", "validate"]

OP = "fatigue_attention"
register_backend(OP, "torch")
register_backend(OP, "rust", devices=("cpu",), why_not=rust.why_not)
# Equal to the definition under the interpreter, compiled for sm_90; its first run on a device is still to come.
register_backend(
    OP,
    "triton",
    devices=triton_runtime.devices(),
    why_not=triton_runtime.why_not,
    by_name=partial(triton_runtime.by_name_alone, OP),
)


def fatigue_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kinetics: Kinetics,
    state: Mapping[str, Tensor] | None = None,
    *,
    rule: str = "min",
    release: str = "kinetic",
    segments_q: Tensor | None = None,
    segments_k: Tensor | None = None,
    window: int | None = None,
    bias: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, dict[str, Tensor]]:
    """Causal attention with presynaptic fatigue.

    Args:
        q: (B, Hq, Tq, D), the queries; they are the last Tq of the Tk positions. Logits are q.k / sqrt(D) + bias and
            should stay within +-30 (normalised q and k): they are exponentiated without subtracting a maximum.
        k, v: (B, Hkv, Tk, D), Hkv divides Hq; query head h reads key head h // (Hq / Hkv).
        kinetics: constants of the synapses, each (Hq,).
        state: "calcium" and "pool", (B, Hq, n) float32 (float64 for float64 input) with n >= Tk - Tq: the last Tk - Tq
            entries are those of the old keys. None: the old keys are fresh. New keys are born with calcium 0 and a
            full pool.
        rule: "min": a synapse releases the smaller of demand and supply; "mul": a fraction of its supply.
        release: "kinetic", or "age": the control in which a key tires with its age alone.
        segments_q, segments_k: (B, Tq) and (B, Tk) int; a query sees only keys of its own segment. Both or neither.
        window: a query at t sees the keys in (t - window, t]; None: all earlier ones.
        bias: broadcastable to (B, Hq, Tq, Tk), added to the logits.
        backend: "auto", or a backend by name.

    A key that is not seen rests: its calcium decays and its pool recovers.

    Returns:
        out (B, Hq, Tq, D) in the dtype of ``q``, and the state of all Tk keys after the last query. Both are
        differentiable in q, k, v, bias, the initial state and all kinetics. A query that sees no key reads zero.

    Raises:
        ValueError: shapes or options that do not fit.
        KernelError: the backend asked for cannot execute this call.
    """
    validate(q, k, v, kinetics, rule, release, segments_q, segments_k, window, bias)
    dtype = reference.precision(q)
    if any(x.dtype != dtype for x in kinetics):
        kinetics = Kinetics(*(x.to(dtype) for x in kinetics))
    old = _old_state(q, k, state)
    if bias is not None:
        bias = bias[(None,) * (4 - bias.dim())]
    chosen = _choose(q.device.type, backend, rust.refuses(q, bias), triton_backend.refuses(q, k, v, bias))
    if chosen == "rust" and not compiler.is_compiling() and not _learns(q, k, v, *kinetics, *(old or ())):
        out, calcium, pool = rust.infer(
            q,
            k,
            v,
            kinetics,
            old,
            rule=rule,
            release=release,
            segments_q=segments_q,
            segments_k=segments_k,
            window=window,
        )
        return out, {"calcium": calcium, "pool": pool}
    calcium, pool = _with_new_keys(q, k, kinetics, old)
    execute = {"rust": rust, "triton": triton_backend}.get(chosen, torch_backend).forward
    out, calcium, pool = execute(
        q,
        k,
        v,
        kinetics,
        calcium,
        pool,
        rule=rule,
        release=release,
        segments_q=segments_q,
        segments_k=segments_k,
        window=window,
        bias=bias,
    )
    return out, {"calcium": calcium, "pool": pool}


@assume_constant_result  # torch.compile asks once, while it traces
def _choose(device: str, backend: str, not_rust: str | None, not_triton: str | None) -> str:
    """Name of the backend; ``not_rust`` and ``not_triton`` are what speaks against them in this call."""
    against = {"rust": not_rust, "triton": not_triton}
    return select(OP, device, backend, {name: reason for name, reason in against.items() if reason is not None})


def _learns(*tensors: Tensor) -> bool:
    """Whether a gradient will be asked for."""
    return is_grad_enabled() and any(x.requires_grad for x in tensors)


def _old_state(q: Tensor, k: Tensor, state: Mapping[str, Tensor] | None) -> tuple[Tensor, Tensor] | None:
    """Calcium and pool (B, Hq, >= Tk - Tq), the last ones those of the old keys; None where all keys are fresh."""
    batch, heads, tq, _ = q.shape
    old = k.shape[2] - tq
    if state is None or old == 0:
        return None
    for name in ("calcium", "pool"):
        past = state[name]
        if past.dim() != 3 or past.shape[:2] != (batch, heads) or past.shape[2] < old:
            raise ValueError(
                f"state['{name}'] has shape {tuple(past.shape)}, but {old} old keys need ({batch}, {heads}, >= {old})"
            )
    return state["calcium"], state["pool"]


def _with_new_keys(
    q: Tensor, k: Tensor, kinetics: Kinetics, old: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Calcium and pool (B, Hq, Tk) before the first query."""
    batch, heads, tq, _ = q.shape
    born = k.shape[2] if old is None else tq
    calcium = q.new_zeros(batch, heads, born, dtype=kinetics.r_max.dtype)
    pool = kinetics.r_max[:, None].expand(batch, heads, born)
    if old is None:
        return calcium, pool
    count = k.shape[2] - tq
    past, full = (x[..., x.shape[2] - count :].to(calcium.dtype) for x in old)
    return cat((past, calcium), dim=-1), cat((full, pool), dim=-1)


def validate(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kinetics: Kinetics,
    rule: str,
    release: str,
    segments_q: Tensor | None,
    segments_k: Tensor | None,
    window: int | None,
    bias: Tensor | None,
) -> None:
    """Raise ValueError if the arguments of :func:`fatigue_attention` do not fit together."""
    if rule not in RULES:
        raise ValueError(f"rule = {rule!r} is unknown; known: {', '.join(RULES)}")
    if release not in RELEASES:
        raise ValueError(f"release = {release!r} is unknown; known: {', '.join(RELEASES)}")
    if q.dim() != 4 or k.dim() != 4 or v.dim() != 4:
        raise ValueError(f"q, k, v must be 4-dimensional, got {q.dim()}, {k.dim()}, {v.dim()} dimensions")
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not x.is_floating_point():
            raise ValueError(f"{name} is {x.dtype}: it must be a floating-point tensor")
    batch, heads, tq, dim = q.shape
    _, kv_heads, tk, _ = k.shape
    if k.shape != (batch, kv_heads, tk, dim) or v.shape[:3] != k.shape[:3]:
        raise ValueError(f"q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} do not fit together")
    if heads % kv_heads:
        raise ValueError(f"{heads} query heads cannot share {kv_heads} key heads: it must divide them")
    if not 0 < tq <= tk:
        raise ValueError(f"{tq} queries need at least as many keys and at least one query; there are {tk} keys")
    for name, x in zip(Kinetics._fields, kinetics, strict=True):
        if x.shape != (heads,):
            raise ValueError(
                f"kinetics.{name} has shape {tuple(x.shape)}, but must have ({heads},): one per query head"
            )
    if (segments_q is None) != (segments_k is None):
        raise ValueError("segments_q and segments_k must be given together")
    for name, ids, length in (("segments_q", segments_q, tq), ("segments_k", segments_k, tk)):
        if ids is not None and ids.shape != (batch, length):
            raise ValueError(f"{name} has shape {tuple(ids.shape)}, but must have ({batch}, {length})")
    if window is not None and window < 1:
        raise ValueError(f"window = {window} must be at least 1, or None")
    if bias is not None:
        full = (batch, heads, tq, tk)
        tail = full[4 - bias.dim() :] if bias.dim() <= 4 else ()
        if bias.dim() > 4 or any(n not in (1, m) for n, m in zip(bias.shape, tail, strict=True)):
            raise ValueError(f"bias {tuple(bias.shape)} cannot be broadcast to {full}")
