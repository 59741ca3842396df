"""Vitals: the few numbers per mechanism that tell whether it lives, collected during a forward pass on request."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor


class Vitals:
    """Collects scalars under ``mechanism/name`` per layer. Pass one to ``model(tokens, vitals=Vitals())``.

    A body that gets no collector computes no vitals: they cost nothing in training.
    """

    def __init__(self) -> None:
        self._values: dict[tuple[str, str], dict[int, list[Tensor]]] = defaultdict(lambda: defaultdict(list))

    def add(self, mechanism: str, name: str, value: Tensor | float, layer: int) -> None:
        """Record the scalar ``value`` (detached) for one layer."""
        scalar = torch.as_tensor(value).detach().float()
        if scalar.numel() != 1:
            raise ValueError(f"vital {mechanism}/{name} must be a scalar, got shape {tuple(scalar.shape)}")
        self._values[mechanism, name][layer].append(scalar.reshape(()))

    def mean(self) -> dict[str, Tensor]:
        """``mechanism/name`` -> scalar: the mean over layers (and calls, if a part was called more than once)."""
        return {
            f"{mechanism}/{name}": torch.stack([v for values in layers.values() for v in values]).mean()
            for (mechanism, name), layers in sorted(self._values.items())
        }

    def per_layer(self) -> dict[str, dict[int, Tensor]]:
        """``mechanism/name`` -> layer -> scalar."""
        return {
            f"{mechanism}/{name}": {layer: torch.stack(values).mean() for layer, values in sorted(layers.items())}
            for (mechanism, name), layers in sorted(self._values.items())
        }
