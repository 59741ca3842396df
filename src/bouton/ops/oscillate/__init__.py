"""Oscillating activation, per feature i: f_i(x) = sin(omega_i x + phi_i) tanh(x) + baseline_i.

A periodic unit (Sitzmann et al. 2020; Parascandolo et al. 2016) under a tanh envelope. Near 0 it is
sin(phi) x + omega cos(phi) x^2. With omega = 0 and sin(phi) = 0 it is constant: a dead unit.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor
from torch.compiler import assume_constant_result

from bouton.errors import KernelError
from bouton.ops import triton_runtime
from bouton.ops.backends import register_backend, select
from bouton.ops.oscillate import rust
from bouton.ops.oscillate import triton as triton_backend
from bouton.ops.oscillate.reference import oscillate_reference
from bouton.ops.oscillate.rust import oscillate_rust
from bouton.ops.oscillate.torch import oscillate_torch

__all__ = ["oscillate", "oscillate_reference"]

OP = "oscillate"
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


def oscillate(
    x: Tensor, omega: Tensor, phi: Tensor, baseline: Tensor | None = None, *, backend: str = "auto"
) -> Tensor:
    """sin(omega x + phi) tanh(x) + baseline; keeps ``x`` alone for the backward pass.

    Args:
        x: (..., width).
        omega: (width,) angular frequency, radians per unit of x.
        phi: (width,) phase, radians.
        baseline: (width,) offset, or None.
        backend: ``auto`` or the name of a backend.

    Returns:
        (..., width) in the dtype of ``x``; computed in float32, or in float64 for float64.

    Raises:
        KernelError: a shape or dtype that does not fit, or a backend that cannot run.
    """
    for name, value in (("omega", omega), ("phi", phi), ("baseline", baseline)):
        if value is not None and (x.dim() == 0 or value.shape != x.shape[-1:]):
            raise KernelError(f"oscillate: {name} {tuple(value.shape)} must be (width,) for x {tuple(x.shape)}")
    if not x.is_floating_point():
        raise KernelError(f"oscillate: x is {x.dtype}: it must be a floating-point tensor")
    chosen = _choose(x.device.type, backend, rust.refuses(x), triton_backend.refuses(x))
    forms = {"rust": oscillate_rust, "triton": triton_backend.oscillate_triton}
    execute = forms.get(chosen, oscillate_torch) if x.numel() else oscillate_torch
    return execute(x, omega, phi, baseline)


@assume_constant_result  # torch.compile asks once, while it traces
def _choose(device: str, backend: str, not_rust: str | None, not_triton: str | None) -> str:
    against = {"rust": not_rust, "triton": not_triton}
    return select(OP, device, backend, {name: reason for name, reason in against.items() if reason is not None})
