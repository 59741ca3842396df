"""The plain layers of the bodies: linear maps, norms, embeddings, activations, rotary positions."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bouton.models.initialize import Draw


class Linear(nn.Linear):
    """y = x W^T + b. W is (out_features, in_features), drawn from N(0, std^2); b starts at 0."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool, std: float) -> None:
        self.std = std
        super().__init__(in_features, out_features, bias=bias)

    def reset_parameters(self) -> None:
        """Nothing: ``initialize`` fills the tensors (and would undo any work done here)."""

    def initialize_parameters(self, draw: Draw) -> None:
        draw.normal(self.weight, self.std, "weight")
        if self.bias is not None:
            draw.constant(self.bias, 0.0)

    def flops_per_token(self, seq_len: int) -> float:
        return 2.0 * self.in_features * self.out_features


class Embedding(nn.Module):
    """Rows of a table, (num, dim), drawn from N(0, std^2)."""

    def __init__(self, num: int, dim: int, *, std: float) -> None:
        super().__init__()
        self.std = std
        self.weight = nn.Parameter(torch.empty(num, dim))

    def forward(self, index: Tensor) -> Tensor:
        return F.embedding(index, self.weight)

    def initialize_parameters(self, draw: Draw) -> None:
        draw.normal(self.weight, self.std, "weight")


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension (Zhang and Sennrich 2019)."""

    def __init__(self, dim: int, *, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)

    def initialize_parameters(self, draw: Draw) -> None:
        draw.constant(self.weight, 1.0)


class LayerNorm(nn.Module):
    """(x - mean) / std * weight + bias over the last dimension (Ba et al. 2016)."""

    def __init__(self, dim: int, *, bias: bool, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(dim))
        self.bias = nn.Parameter(torch.empty(dim)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)

    def initialize_parameters(self, draw: Draw) -> None:
        draw.constant(self.weight, 1.0)
        if self.bias is not None:
            draw.constant(self.bias, 0.0)


def make_norm(kind: str, dim: int, bias: bool) -> nn.Module:
    """``rmsnorm`` or ``layernorm``."""
    return LayerNorm(dim, bias=bias) if kind == "layernorm" else RMSNorm(dim)


def _relu2(x: Tensor) -> Tensor:
    return F.relu(x).square()


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


# `swiglu` is silu on the gate of a gated mixer; see mixers.MLP.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": _gelu_tanh,
    "relu2": _relu2,
    "silu": F.silu,
    "swiglu": F.silu,
}


class Activation(nn.Module):
    """One of :data:`ACTIVATIONS`, elementwise."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.function = ACTIVATIONS[kind]

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)

    def extra_repr(self) -> str:
        return self.kind


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding (Su et al. 2021) of x (B, H, T, D), halves convention; cos, sin (B or 1, 1, T, D/2)."""
    half = x.shape[-1] // 2
    a, b = x[..., :half].to(cos.dtype), x[..., half:].to(cos.dtype)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1).to(x.dtype)
