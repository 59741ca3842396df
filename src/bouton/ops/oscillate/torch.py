"""Oscillating activation that keeps its input alone for the backward pass.

Autograd would keep x and three intermediate tensors of its size. Here the backward pass computes them anew, block by
block, so that the scratch memory is one block and stays in the cache. The envelope is taken as
tanh(x) = 2 sigmoid(2x) - 1: several times faster than torch's tanh on a CPU, and equal to it to one rounding of 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bouton.ops.oscillate.reference import oscillate_reference

# Elements per block and thread: torch gives a thread at least this many, and a few such blocks fit into a core's cache.
_BLOCK = 32768


def oscillate_torch(x: Tensor, omega: Tensor, phi: Tensor, baseline: Tensor | None) -> Tensor:
    """See :func:`bouton.ops.oscillate.oscillate`."""
    if torch.compiler.is_compiling():
        # The compiler fuses the plain formula and recomputes it in the backward pass by itself.
        return oscillate_reference(x.to(_precision(x)), omega, phi, baseline).to(x.dtype)
    y: Tensor = _Oscillate.apply(x, omega, phi, baseline)
    return y


def _precision(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _rows(x: Tensor) -> int:
    """Rows of x (n, width) per block; off the CPU one block is all: there a launch costs more than a cache miss."""
    if x.device.type != "cpu":
        return max(1, x.shape[0])
    return max(1, _BLOCK * torch.get_num_threads() // max(1, x.shape[1]))


class _Oscillate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, omega: Tensor, phi: Tensor, baseline: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, omega, phi)
        flat = x.reshape(x.shape[:-1].numel(), x.shape[-1])
        dtype, rows = _precision(x), _rows(flat)
        omega, phi = omega.to(dtype), phi.to(dtype)
        y = torch.empty_like(flat)
        for x_block, y_block in zip(flat.split(rows), y.split(rows), strict=True):
            value = x_block.to(dtype)
            wave = torch.addcmul(phi, value, omega).sin_()
            envelope = (2 * value).sigmoid_().mul_(2).sub_(1)
            wave.mul_(envelope)
            y_block.copy_(wave if baseline is None else wave.add_(baseline))
        return y.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, omega, phi = ctx.saved_tensors
        width = x.shape[-1]
        rows = x.shape[:-1].numel()
        flat, grad_flat = x.reshape(rows, width), grad.reshape(rows, width)
        dtype, rows = _precision(x), _rows(flat)
        omega_, phi_ = omega.to(dtype), phi.to(dtype)
        need_x, need_omega, need_phi, need_baseline = ctx.needs_input_grad
        grad_x = torch.empty_like(flat)
        grad_omega, grad_phi, grad_baseline = (torch.zeros(width, dtype=dtype, device=x.device) for _ in range(3))
        blocks = zip(flat.split(rows), grad_flat.split(rows), grad_x.split(rows), strict=True)
        for x_block, grad_block, grad_x_block in blocks:
            value, upstream = x_block.to(dtype), grad_block.to(dtype)
            if need_baseline:
                grad_baseline += upstream.sum(0)
            if not (need_x or need_omega or need_phi):
                continue
            angle = torch.addcmul(phi_, value, omega_)
            envelope = (2 * value).sigmoid_().mul_(2).sub_(1)
            slope = angle.cos().mul_(envelope)  # df/dphi = cos(angle) tanh(x)
            if need_x:
                # df/dx = omega cos(angle) tanh(x) + sin(angle) (1 - tanh(x)^2)
                rise = angle.sin_()
                rise.addcmul_(rise, envelope.square_(), value=-1).addcmul_(slope, omega_)
                grad_x_block.copy_(rise.mul_(upstream))
            if need_omega or need_phi:
                slope.mul_(upstream)
                grad_phi += slope.sum(0)
                grad_omega += slope.mul_(value).sum(0)  # df/domega = x df/dphi
        return (
            grad_x.view(x.shape) if need_x else None,
            grad_omega.to(omega.dtype) if need_omega else None,
            grad_phi.to(phi.dtype) if need_phi else None,
            grad_baseline.to(omega.dtype) if need_baseline else None,
        )
