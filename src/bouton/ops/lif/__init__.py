"""Leaky integrate-and-fire neurons along time, tokens as time steps; the definition is in :mod:`.reference`.

    lif_scan     every neuron by itself
    rlif_scan    with a recurrent map of the spikes: I_t = x_t + W_rec s_{t-1}

Time is axis 1. The state between two calls is the membrane potential u and the last spikes s, both (B, H).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

# `import torch` would be shadowed here by the submodule of that name.
from torch import Tensor, as_tensor, float32, full, promote_types
from torch import bool as torch_bool
from torch.compiler import assume_constant_result

from bouton.errors import KernelError, suggest
from bouton.ops import triton_runtime
from bouton.ops.backends import register_backend, select
from bouton.ops.lif import rust
from bouton.ops.lif import triton as triton_backend
from bouton.ops.lif.reference import lif_reference
from bouton.ops.lif.rust import lif_rust
from bouton.ops.lif.surrogates import SURROGATES, surrogate_derivative
from bouton.ops.lif.torch import lif_torch

__all__ = ["SURROGATES", "lif_reference", "lif_scan", "rlif_scan", "surrogate_derivative"]

OP = "lif"
RESETS = ("subtract", "zero", "none")
RESET_ORDERS = ("after_decay", "before_decay")
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


@dataclass(frozen=True)
class LIFOptions:
    """What kind of neuron it is; the same for all backends."""

    reset: str = "subtract"
    reset_order: str = "after_decay"
    surrogate: str = "atan"
    alpha: float = 2.0
    detach_reset: bool = True


def lif_scan(
    x: Tensor,
    beta: Tensor | float,
    theta: Tensor | float = 1.0,
    gain: Tensor | float | None = None,
    u0: Tensor | None = None,
    s0: Tensor | None = None,
    starts: Tensor | None = None,
    *,
    reset: str = "subtract",
    reset_order: str = "after_decay",
    surrogate: str = "atan",
    alpha: float | None = None,
    detach_reset: bool = True,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Spikes of H independent neurons over T tokens.

    Args:
        x: (B, T, H) input current.
        beta: (H,) or a number, share of the membrane potential that is left after a token.
        theta: (H,) or a number, threshold: a neuron spikes where u > theta.
        gain: (H,) or a number, factor of the current; None: 1.
        u0: (B, H) membrane potential before the first token; None: 0.
        s0: (B, H) spikes (0 or 1) at the token before; None: none.
        starts: (B, T) bool, True at the first token of a document: u and s are 0 before it. None: no document begins.
        reset: what a spike does to the membrane potential: ``subtract`` (theta is taken off), ``zero``, ``none``.
        reset_order: of ``subtract``: ``after_decay`` takes off theta, ``before_decay`` beta theta.
        surrogate: derivative of the spike, one of :data:`SURROGATES`.
        alpha: its sharpness, > 0; None: its default.
        detach_reset: no gradient passes through the reset.
        backend: ``auto`` or the name of a backend.

    Returns:
        spikes (B, T, H), 0 or 1, in the dtype of ``x``, and the membrane potential (B, H) after the last token, in
        float32 (float64 for float64), in which all is computed. Both are differentiable in x, beta, theta, gain, u0
        and s0. The state to go on from is that potential and the last spikes.

    Raises:
        KernelError: a shape, dtype or option that does not fit, or a backend that cannot run.
    """
    options = _options("lif_scan", reset, reset_order, surrogate, alpha, detach_reset)
    return _scan("lif_scan", x, None, beta, theta, gain, u0, s0, starts, options, backend)


def rlif_scan(
    x: Tensor,
    w_rec: Tensor,
    beta: Tensor | float,
    theta: Tensor | float = 1.0,
    gain: Tensor | float | None = None,
    u0: Tensor | None = None,
    s0: Tensor | None = None,
    starts: Tensor | None = None,
    *,
    reset: str = "subtract",
    reset_order: str = "after_decay",
    surrogate: str = "atan",
    alpha: float | None = None,
    detach_reset: bool = True,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Spikes of H neurons that hear each other's last spikes: the current is x_t + W_rec s_{t-1}.

    Args:
        w_rec: (H, H), row i what neuron i hears; s0 counts at the first token.
        Others and what is returned: as for :func:`lif_scan`, differentiable in w_rec too.

    Raises:
        KernelError: a shape, dtype or option that does not fit, or a backend that cannot run.
    """
    options = _options("rlif_scan", reset, reset_order, surrogate, alpha, detach_reset)
    return _scan("rlif_scan", x, w_rec, beta, theta, gain, u0, s0, starts, options, backend)


def _options(
    name: str, reset: str, reset_order: str, surrogate: str, alpha: float | None, detach_reset: bool
) -> LIFOptions:
    for what, value, known in (
        ("reset", reset, RESETS),
        ("reset_order", reset_order, RESET_ORDERS),
        ("surrogate", surrogate, SURROGATES),
    ):
        if value not in known:
            raise KernelError(f"{name}: {what} = {value!r} is unknown; {suggest(str(value), known)}")
    sharpness = SURROGATES[surrogate] if alpha is None else float(alpha)
    if not 0 < sharpness < float("inf"):
        raise KernelError(f"{name}: alpha = {alpha} must be a number > 0")
    return LIFOptions(reset, reset_order, surrogate, sharpness, bool(detach_reset))


def _scan(
    name: str,
    x: Tensor,
    w_rec: Tensor | None,
    beta: Tensor | float,
    theta: Tensor | float,
    gain: Tensor | float | None,
    u0: Tensor | None,
    s0: Tensor | None,
    starts: Tensor | None,
    options: LIFOptions,
    backend: str,
) -> tuple[Tensor, Tensor]:
    if x.dim() != 3:
        raise KernelError(f"{name}: x {tuple(x.shape)} must be (B, T, H)")
    if not x.is_floating_point():
        raise KernelError(f"{name}: x is {x.dtype}: it must be a floating-point tensor")
    batch, tokens, width = x.shape
    if starts is not None and (starts.shape != (batch, tokens) or starts.dtype != torch_bool):
        raise KernelError(
            f"{name}: starts {tuple(starts.shape)} {starts.dtype} must be (B, T) = {(batch, tokens)} torch.bool"
        )
    if w_rec is not None and w_rec.shape != (width, width):
        raise KernelError(f"{name}: w_rec {tuple(w_rec.shape)} must be (H, H) = {(width, width)}")
    for what, state in (("u0", u0), ("s0", s0)):
        if state is not None and state.shape != (batch, width):
            raise KernelError(f"{name}: {what} {tuple(state.shape)} must be (B, H) = {(batch, width)}")
    dtype = promote_types(x.dtype, float32)
    u, s = (x.new_zeros(batch, width, dtype=dtype) if state is None else state.to(dtype) for state in (u0, s0))
    decay, threshold = _per_neuron(name, "beta", beta, x), _per_neuron(name, "theta", theta, x)
    factor = None if gain is None else _per_neuron(name, "gain", gain, x)
    recurrent = None if w_rec is None else w_rec.to(dtype)
    chosen = _choose(x.device.type, backend, rust.refuses(x), triton_backend.refuses(x))
    if x.numel() == 0:
        return x.clone(), u
    if chosen == "triton":
        return triton_backend.lif_triton(x, decay, threshold, factor, recurrent, u, s, starts, options)
    execute = lif_rust if chosen == "rust" else lif_torch
    spikes, u = execute(x.to(dtype), decay, threshold, factor, recurrent, u, s, starts, options)
    return spikes.to(x.dtype), u


def _per_neuron(name: str, what: str, value: Tensor | float, x: Tensor) -> Tensor:
    """``value`` as (H,), in the precision of the arithmetic."""
    dtype = promote_types(x.dtype, float32)
    if not isinstance(value, Tensor):
        return full((x.shape[-1],), value, dtype=dtype, device=x.device)  # a copy to a device would wait for it
    given = as_tensor(value, dtype=dtype, device=x.device)
    if given.shape not in ((), (1,), x.shape[-1:]):
        raise KernelError(f"{name}: {what} {tuple(given.shape)} must be (H,) = ({x.shape[-1]},) or a number")
    return given.expand(x.shape[-1])


@assume_constant_result  # torch.compile asks once, while it traces
def _choose(device: str, backend: str, not_rust: str | None, not_triton: str | None) -> str:
    against = {"rust": not_rust, "triton": not_triton}
    return select(OP, device, backend, {name: reason for name, reason in against.items() if reason is not None})
