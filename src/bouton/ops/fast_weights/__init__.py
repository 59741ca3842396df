"""Fast weights: a linear map that rewrites itself while it reads, with a fast cache and a consolidated copy.

    read_t = q_t (F_{t-1} + S_{t-1})
    F_t    = rho_f F_{t-1} + eta_t k_t (x) v_t                                   rule hebb
    F_t    = rho_f F_{t-1} + eta_t k_t (x) (v_t - k_t F_{t-1})                   rule delta, eta_t clamped to [0, 1]
    F_tc   = max(rho_f - eta_t v_tc^2, 0) F_{t-1,c} + eta_t k_t v_tc             rule oja, column c of F
    S_t    = rho_s S_{t-1} + eta_s g_t F_t

Sources: Ba et al. 2016 (fast weights), Oja 1982, Schlag et al. 2021 and Yang et al. 2024 (delta rule, chunkwise form).
"""

from __future__ import annotations

from functools import partial
from typing import Any

# `import torch` would be shadowed here by the submodule of that name.
from torch import Tensor, as_tensor, float32, float64, is_grad_enabled
from torch.compiler import assume_constant_result

from bouton.errors import KernelError, suggest
from bouton.ops import triton_runtime
from bouton.ops.backends import register_backend, select
from bouton.ops.fast_weights import fla, rust
from bouton.ops.fast_weights.fla import fast_weights_fla
from bouton.ops.fast_weights.reference import fast_weights_reference
from bouton.ops.fast_weights.rust import fast_weights_rust
from bouton.ops.fast_weights.torch import fast_weights_torch

__all__ = ["RULES", "fast_weights", "fast_weights_reference"]

OP = "fast_weights"
RULES = ("hebb", "oja", "delta")
register_backend(OP, "torch")
register_backend(OP, "rust", devices=("cpu",), why_not=rust.why_not)
register_backend(
    OP,
    "triton",
    devices=triton_runtime.devices(),
    why_not=fla.why_not,
    by_name=partial(triton_runtime.by_name_alone, OP),
)


def fast_weights(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor | float,
    *,
    rho_f: Tensor | float,
    rho_s: Tensor | float,
    eta_s: Tensor | float,
    gate: Tensor | None = None,
    rule: str = "hebb",
    state: dict[str, Tensor] | None = None,
    starts: Tensor | None = None,
    chunk: int = 64,
    backend: str = "auto",
) -> tuple[Tensor, dict[str, Tensor]]:
    """Read and write fast weights along a sequence; a write at t is visible from t + 1.

    Args:
        q: (B, H, T, r) queries.
        k: (B, H, T, r) keys; the delta rule is stable for ``|k_t| <= 1``.
        v: (B, H, T, dv) values. They must not depend on the read.
        eta: learning rate, broadcastable to (B, H, T); already multiplied by every gain.
        rho_f: (H,) or number, decay of the fast cache per token, in [0, 1].
        rho_s: (H,) or number, decay of the consolidated part per token, in [0, 1].
        eta_s: (H,) or number, consolidation rate. The number 0 turns S off: it costs nothing and, unless ``state``
            brings one along (which then only decays), the returned state has no ``slow``.
        gate: broadcastable to (B, H, T), what share of F_t is consolidated; None is 1.
        rule: ``hebb``, ``oja`` or ``delta``.
        state: ``{"fast": (B, H, r, dv), "slow": (B, H, r, dv)}``; None, or an absent part, is zero.
        starts: (B, T) bool; the state is zero before the read of a token that starts a document.
        chunk: tokens per block of the parallel form (backend torch); any value gives the same result.
        backend: ``auto`` or the name of a backend.

    Returns:
        read (B, H, T, dv) in the dtype of ``v``, and the state after the last token in float32 (float64 for float64).

    Raises:
        KernelError: an unknown rule, a shape that does not fit, or a backend that cannot run.
    """
    if rule not in RULES:
        raise KernelError(f"fast_weights: rule = '{rule}' is unknown; {suggest(rule, RULES)}")
    if chunk < 1:
        raise KernelError(f"fast_weights: chunk = {chunk} must be at least 1")
    if q.dim() != 4 or q.shape != k.shape or v.dim() != 4 or v.shape[:3] != q.shape[:3]:
        raise KernelError(
            f"fast_weights: q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)} must be "
            "(B, H, T, r), (B, H, T, r), (B, H, T, dv)"
        )
    batch, heads, tokens, rank = q.shape
    if starts is not None and starts.shape != (batch, tokens):
        raise KernelError(f"fast_weights: starts {tuple(starts.shape)} must be (B, T) = {(batch, tokens)}")
    dtype = float64 if float64 in (q.dtype, v.dtype) else float32
    state = state or {}
    shape = (batch, heads, rank, v.shape[-1])
    for name, part in state.items():
        if name not in ("fast", "slow") or part.shape != shape:
            raise KernelError(f"fast_weights: state['{name}'] {tuple(part.shape)} must be fast or slow, {shape}")

    slow_on = not isinstance(eta_s, (int, float)) or eta_s != 0.0 or "slow" in state
    not_fla = fla.refuses(q, v, rho_f, rule=rule, slow=slow_on)
    learned = rule if _learns(q, k, v, eta, rho_f, *state.values()) else None
    chosen = _choose(q.device.type, backend, rust.refuses(q, v), not_fla, learned)

    def fitted(name: str, value: Tensor | float, *shape: int) -> Tensor:
        given = as_tensor(value, dtype=dtype, device=q.device)
        tail = shape[len(shape) - given.dim() :] if given.dim() <= len(shape) else ()
        if given.dim() > len(shape) or any(n not in (1, full) for n, full in zip(given.shape, tail, strict=True)):
            raise KernelError(f"fast_weights: {name} {tuple(given.shape)} cannot be broadcast to {shape}")
        return given.expand(shape)

    def part_of_state(name: str) -> Tensor:
        return state[name].to(dtype) if name in state else q.new_zeros(shape, dtype=dtype)

    rate = fitted("eta", eta, batch, heads, tokens)
    tensors = (q.to(dtype), k.to(dtype), v.to(dtype), rate.clamp(0.0, 1.0) if rule == "delta" else rate)
    options: dict[str, Any] = {
        "rho_f": fitted("rho_f", rho_f, heads),
        "rho_s": fitted("rho_s", rho_s, heads) if slow_on else None,
        "eta_s": fitted("eta_s", eta_s, heads) if slow_on else None,
        "gate": None if gate is None or not slow_on else fitted("gate", gate, batch, heads, tokens),
        "rule": rule,
        "fast": part_of_state("fast"),
        "slow": part_of_state("slow") if slow_on else None,
        "starts": starts,
    }
    if chosen == "triton":
        only_fast = {name: options[name] for name in ("rho_f", "rule", "fast", "starts")}
        (read, fast), slow = fast_weights_fla(*tensors, **only_fast), None
    elif chosen == "rust":
        read, fast, slow = fast_weights_rust(*tensors, **options)
    else:
        read, fast, slow = fast_weights_torch(*tensors, **options, chunk=chunk)
    after = {"fast": fast} if slow is None else {"fast": fast, "slow": slow}
    return read.to(v.dtype), after


@assume_constant_result  # torch.compile asks once, while it traces
def _choose(device: str, backend: str, not_rust: str | None, not_fla: str | None, learned: str | None) -> str:
    """Name of the backend; ``not_rust`` and ``not_fla`` are what speaks against them in this call.

    Args:
        learned: the rule, if gradients will be asked for.
    """
    if not_fla is None and learned is not None:
        not_fla = fla.lacks_gradients(learned)
    against = {"rust": not_rust, "triton": not_fla}
    return select(OP, device, backend, {name: reason for name, reason in against.items() if reason is not None})


def _learns(*values: Tensor | float) -> bool:
    """Whether a gradient will be asked for."""
    return is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in values)
