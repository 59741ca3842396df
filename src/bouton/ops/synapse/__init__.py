"""Attention whose synapses tire, with refinements: asynchronous release, recycled vesicles, energy, whole vesicles.

:mod:`.reference` has the equations. Without refinements it is :func:`bouton.ops.fatigue_attention.fatigue_attention`,
which is much faster.
"""

from __future__ import annotations

from collections.abc import Mapping

# The submodule `torch` takes that name in this package, so only names are imported from the library.
from torch import Tensor, autocast, cat, tensor

from bouton.ops.backends import register_backend, select
from bouton.ops.fatigue_attention import Kinetics, validate
from bouton.ops.fatigue_attention.reference import precision
from bouton.ops.synapse import reference
from bouton.ops.synapse import torch as torch_backend
from bouton.ops.synapse.reference import Doc2, Endocytosis, Metabolism, Refinements
from bouton.ops.synapse.release import MAX_VESICLES, MODES, Binomial, drawn, stream

__all__ = [
    "MAX_VESICLES",
    "MODES",
    "Binomial",
    "Doc2",
    "Endocytosis",
    "Metabolism",
    "Refinements",
    "drawn",
    "per_head",
    "stream",
    "synapse",
]

OP = "synapse"
register_backend(OP, "torch")


def synapse(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kinetics: Kinetics,
    refinements: Refinements,
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
    """Causal attention with presynaptic fatigue and its refinements.

    Args:
        refinements: what goes beyond the plain synapse, with constants (Hq,).
        state: what an earlier call returned, of at least the Tk - Tq old keys (the last ones count); None: the old keys
            are fresh. ``calcium`` and ``pool``, ``slow_calcium`` with doc2, ``reserve`` and ``ring`` (B, Hq, n, delay)
            with endocytosis, ``energy`` with metabolism; (B, Hq, n) float32 unless stated, float64 for float64 input.

    The other arguments are those of :func:`bouton.ops.fatigue_attention.fatigue_attention`.

    Returns:
        out (B, Hq, Tq, D) in the dtype of ``q``, and the state after the last query of the keys that it could see by
        the window, the last min(Tk, window). Both are differentiable in q, k, v, bias, the initial state and all
        constants. A query that sees no key reads zero.

    Raises:
        ValueError: shapes or options that do not fit.
        KernelError: the backend asked for cannot execute this call.
    """
    validate(q, k, v, kinetics, rule, release, segments_q, segments_k, window, bias)
    if release == "age" and refinements.doc2 is not None:
        raise ValueError("release = 'age' has no calcium, which doc2 needs: use release = 'kinetic'")
    if refinements.endocytosis is not None and refinements.endocytosis.delay < 1:
        raise ValueError(f"endocytosis.delay = {refinements.endocytosis.delay} must be at least 1")
    select(OP, q.device, backend)
    dtype = precision(q)
    kinetics = Kinetics(*(x.to(dtype) for x in kinetics))
    tq, tk = q.shape[2], k.shape[2]
    old = 0 if state is None else tk - tq
    full = reference.newborn(kinetics, refinements, (q.shape[0], q.shape[1], tk - old))
    if state is not None and old > 0:
        full = {name: cat((_of_old_keys(state, name, x, old), x), dim=2) for name, x in full.items()}
    if bias is not None:
        bias = bias[(None,) * (4 - bias.dim())]
    with autocast(q.device.type, enabled=False):
        return torch_backend.forward(
            q,
            k,
            v,
            kinetics,
            full,
            refinements,
            rule=rule,
            release=release,
            segments_q=segments_q,
            segments_k=segments_k,
            window=window,
            bias=bias,
        )


def per_head(q: Tensor, *values: float) -> list[Tensor]:
    """Constants as tensors (H,), one value for all heads of q (B, H, T, D), in the precision of the arithmetic."""
    rows = tensor(values, dtype=precision(q), device=q.device)
    return list(rows[:, None].expand(-1, q.shape[1]).unbind(0))


def _of_old_keys(state: Mapping[str, Tensor], name: str, like: Tensor, old: int) -> Tensor:
    if name not in state:
        raise ValueError(f"state has no '{name}', only {', '.join(state)}: it comes from other refinements")
    past = state[name]
    if past.dim() != like.dim() or past.shape[:2] != like.shape[:2] or past.shape[2] < old:
        raise ValueError(
            f"state['{name}'] has shape {tuple(past.shape)}, but {old} old keys need "
            f"{(*like.shape[:2], f'>= {old}', *like.shape[3:])}"
        )
    return past[:, :, past.shape[2] - old :].to(like.dtype)
