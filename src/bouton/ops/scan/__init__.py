"""First-order recurrences along time: calcium traces, leaky integrators, adaptive thresholds, vesicle pools.

    affine_scan       y_t = a_t y_{t-1} + x_t
    max_affine_scan   y_t = max(a_t y_{t-1} + x_t, floor_t)

Time is axis 1, as in the activity (B, T, N) of a body: the N channels of one token lie side by side in memory, and one
step of the recurrence is the same arithmetic on all of them.
"""

from __future__ import annotations

# `import torch` would be shadowed here by the submodule of that name.
from torch import Tensor, as_tensor, float32, promote_types
from torch import bool as torch_bool
from torch.compiler import assume_constant_result

from bouton.errors import KernelError
from bouton.ops.backends import register_backend, select
from bouton.ops.scan import rust
from bouton.ops.scan.reference import scan_reference, step
from bouton.ops.scan.rust import scan_rust
from bouton.ops.scan.torch import scan_torch

__all__ = ["affine_scan", "max_affine_scan", "scan_reference"]

OP = "scan"
register_backend(OP, "torch")
register_backend(OP, "rust", devices=("cpu",), why_not=rust.why_not)


def affine_scan(
    a: Tensor | float,
    x: Tensor,
    state: Tensor | None = None,
    starts: Tensor | None = None,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """y_t = a_t y_{t-1} + x_t along axis 1, for every channel by itself.

    Args:
        a: broadcastable to (B, T, N): a number, (N,) per channel, (T, 1) or (B, T, 1) per token, ... A decay is in
            [0, 1]; any other number will do as long as products of successive ones stay finite.
        x: (B, T, N), what is added at each token.
        state: (B, N), y before the first token; None: 0.
        starts: (B, T) bool, True at the first token of a document. Before it y is 0, whatever it was: y_t = x_t there,
            and neither a value nor a gradient passes. None: no document begins here.
        backend: ``auto`` or the name of a backend.

    Returns:
        y (B, T, N) in the dtype of ``x``, computed in float32 (float64 for float64), and the state (B, N) after the
        last token in that precision. Both are differentiable in a, x and state.

        After an infinite number or one that is none, what follows in its document means nothing.

    Raises:
        KernelError: a shape or dtype that does not fit, or a backend that cannot run.
    """
    return _scan("affine_scan", a, x, None, state, starts, backend)


def max_affine_scan(
    a: Tensor | float,
    x: Tensor,
    floor: Tensor | float,
    state: Tensor | None = None,
    starts: Tensor | None = None,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """y_t = max(a_t y_{t-1} + x_t, floor_t) along axis 1, for every channel by itself.

    Args:
        a, x, state, starts, backend: as for :func:`affine_scan`; y_t = max(x_t, floor_t) at the start of a document.
        floor: broadcastable to (B, T, N); minus infinity where there is none.

    Returns:
        As :func:`affine_scan`, differentiable in floor too. At a tie the floor is taken: it receives the gradient, and
        a_t, x_t and y_{t-1} receive none.

    Raises:
        KernelError: a shape or dtype that does not fit, or a backend that cannot run.
    """
    return _scan("max_affine_scan", a, x, floor, state, starts, backend)


def _scan(
    name: str,
    a: Tensor | float,
    x: Tensor,
    floor: Tensor | float | None,
    state: Tensor | None,
    starts: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor]:
    if x.dim() != 3:
        raise KernelError(f"{name}: x {tuple(x.shape)} must be (B, T, N)")
    if not x.is_floating_point():
        raise KernelError(f"{name}: x is {x.dtype}: it must be a floating-point tensor")
    batch, tokens, channels = x.shape
    if starts is not None and (starts.shape != (batch, tokens) or starts.dtype != torch_bool):
        raise KernelError(
            f"{name}: starts {tuple(starts.shape)} {starts.dtype} must be (B, T) = {(batch, tokens)} torch.bool"
        )
    if state is not None and state.shape != (batch, channels):
        raise KernelError(f"{name}: state {tuple(state.shape)} must be (B, N) = {(batch, channels)}")
    dtype = promote_types(x.dtype, float32)
    factor = _coefficient(f"{name}: a", a, x)
    bound = None if floor is None else _coefficient(f"{name}: floor", floor, x)
    before = x.new_zeros(batch, channels, dtype=dtype) if state is None else state.to(dtype)
    added = x.to(dtype)
    chosen = _choose(x.device.type, backend, rust.refuses(x))
    if tokens == 1:
        # A decoding step is the definition itself.
        here = None if bound is None else bound[:, 0]
        after = step(factor[:, 0], added[:, 0], here, before, starts)
        return after.unsqueeze(1).to(x.dtype), after
    if x.numel() == 0:
        return x.clone(), before
    execute = scan_rust if chosen == "rust" else scan_torch
    y, after = execute(factor, added, bound, before, starts)
    return y.to(x.dtype), after


def _coefficient(name: str, value: Tensor | float, x: Tensor) -> Tensor:
    """``value`` with three axes, each whole or of size 1, in the precision of the arithmetic."""
    given = as_tensor(value, dtype=promote_types(x.dtype, float32), device=x.device)
    shape = (1,) * (3 - given.dim()) + tuple(given.shape)
    if len(shape) != 3 or any(n not in (1, whole) for n, whole in zip(shape, x.shape, strict=True)):
        raise KernelError(f"{name} {tuple(given.shape)} cannot be broadcast to x {tuple(x.shape)}")
    return given.reshape(shape)


@assume_constant_result  # torch.compile asks once, while it traces
def _choose(device: str, backend: str, not_rust: str | None) -> str:
    return select(OP, device, backend, {} if not_rust is None else {"rust": not_rust})
