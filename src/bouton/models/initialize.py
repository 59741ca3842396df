"""Initialisation: each tensor is drawn from a generator keyed by (seed, its qualified name).

So equal-named tensors are equal whichever mechanisms are plugged (paired comparisons start from the same weights),
the result does not depend on the order of construction or the device, and a model built on the meta device can be
initialised after ``to_empty``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

Initializer = Callable[[str, Tensor, "Draw"], None]


class Draw:
    """Fills tensors in place; ``name`` makes the draw unique within the module that owns the tensor.

    Args:
        initializer: gets every tensor after it was drawn from a centred normal distribution, as (qualified name,
            tensor, this draw), and may fill it anew. What a module defines otherwise (orthonormal, constant) stays.
    """

    def __init__(self, seed: int, module: str, initializer: Initializer | None = None) -> None:
        self.seed = seed
        self.module = module
        self.initializer = initializer

    def generator(self, name: str) -> torch.Generator:
        """A CPU generator for the tensor ``name`` of this module."""
        key = hashlib.blake2b(f"{self.seed}/{self.module}.{name}".encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(key, "little") >> 1)

    @torch.no_grad()
    def normal(self, tensor: Tensor, std: float, name: str, mean: float = 0.0) -> None:
        """N(mean, std^2), drawn in float32 on the CPU so that every device and dtype gets the same numbers."""
        values = torch.empty(tensor.shape, dtype=torch.float32)
        tensor.copy_(values.normal_(mean, std, generator=self.generator(name)))
        if self.initializer is not None and mean == 0:
            self.initializer(f"{self.module}.{name}", tensor, self)

    @torch.no_grad()
    def uniform(self, tensor: Tensor, low: float, high: float, name: str) -> None:
        """Uniform in [low, high)."""
        values = torch.empty(tensor.shape, dtype=torch.float32)
        tensor.copy_(values.uniform_(low, high, generator=self.generator(name)))

    @torch.no_grad()
    def orthogonal(self, tensor: Tensor, name: str) -> None:
        """Orthonormal rows (or columns, whichever are fewer) in the last two dimensions."""
        values = torch.empty(tensor.shape, dtype=torch.float32)
        generator = self.generator(name)
        for matrix in values.view(-1, *tensor.shape[-2:]):
            nn.init.orthogonal_(matrix, generator=generator)
        tensor.copy_(values)

    @torch.no_grad()
    def constant(self, tensor: Tensor, value: float | Tensor) -> None:
        """One value, or a tensor of values."""
        tensor.copy_(torch.as_tensor(value, dtype=tensor.dtype, device=tensor.device).expand(tensor.shape))


class AsDrawn(nn.Module):
    """The plain initializer: every tensor stays as its module drew it."""

    def forward(self, name: str, tensor: Tensor, draw: Draw) -> None:
        pass


def initialize(model: nn.Module, seed: int) -> nn.Module:
    """Initialise every parameter and buffer of ``model`` in place and return it.

    Every module that owns tensors must have ``initialize_parameters(draw)``. A body's socket ``initializer`` may then
    fill its matrices anew.

    Raises:
        TypeError: a module owns tensors and does not say how to initialise them.
    """
    initializer = getattr(model, "initializer", None)
    for name, module in model.named_modules():
        owns = next(module.parameters(recurse=False), None) is not None
        owns = owns or next(module.buffers(recurse=False), None) is not None
        if not owns:
            continue
        method = getattr(module, "initialize_parameters", None)
        if method is None:
            raise TypeError(f"{type(module).__qualname__} ({name}) owns tensors and has no initialize_parameters(draw)")
        method(Draw(seed, name, initializer))
    return model
