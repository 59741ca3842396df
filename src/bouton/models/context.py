"""What the parts of a body may know about the present forward pass: positions, documents, masks, signals, vitals."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from bouton.mechanisms.vitals import Vitals
from bouton.models.blockwise import Block, plan


@dataclass
class Context:
    """One forward pass over T new tokens, of which each sees itself and all earlier ones.

    Attributes:
        positions: (B or 1, T) int64, position of each new token in its document (absolute: it goes on over chunks).
        starts: (B, T) bool, True where a new document begins; None if none begins in this chunk.
        segments_q: (B, T) int64, running number of the document of each new token; None if all keys are of one.
        segments_k: (B, T_key) int64, the same for all keys, cached and new; None together with ``segments_q``. A layer
            that keeps fewer keys (a window) takes the last ones.
        samples: (B,) int64, number of the sample that each row is, the same on however many ranks: what draws random
            numbers takes them from it. None: the rows are samples 0, 1, ... B - 1.
        signals: global signals (calcium, energy, dopamine, ...) by name, in the order of publication.
        vitals: collector, or None when nobody asked.
    """

    positions: Tensor
    starts: Tensor | None = None
    segments_q: Tensor | None = None
    segments_k: Tensor | None = None
    samples: Tensor | None = None
    signals: dict[str, Tensor] = field(default_factory=dict)
    vitals: Vitals | None = None
    _masks: dict[tuple[int | None, int], Tensor | None] = field(default_factory=dict)
    _blocks: dict[tuple[int | None, torch.dtype], list[Block] | None] = field(default_factory=dict)
    _rotations: dict[tuple[int, float], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def report(self, mechanism: str, name: str, value: Tensor | float, layer: int) -> None:
        """Record a vital if somebody asked for vitals."""
        if self.vitals is not None:
            self.vitals.add(mechanism, name, value, layer)

    def mask(self, window: int | None, num_keys: int) -> Tensor | None:
        """Which key each query may see: bool (B or 1, 1, T, num_keys), True = visible; None = plain causal, no cache.

        Args:
            window: a query at t sees the keys in (t - window, t]; None: all earlier ones.
            num_keys: the keys at hand, the last ``num_keys`` of all (a windowed layer keeps fewer than others).
        """
        if (window, num_keys) not in self._masks:
            self._masks[window, num_keys] = self._mask(window, num_keys)
        return self._masks[window, num_keys]

    def _mask(self, window: int | None, num_keys: int) -> Tensor | None:
        t = self.positions.shape[1]
        if self.segments_q is None and num_keys == t and (window is None or window >= t):
            return None
        device = self.positions.device
        query = torch.arange(num_keys - t, num_keys, device=device)[:, None]
        key = torch.arange(num_keys, device=device)[None, :]
        visible = key <= query
        if window is not None:
            visible = visible & (key > query - window)
        mask = visible[None, None]
        if self.segments_q is not None and self.segments_k is not None:
            mask = mask & (self.segments_q[:, None, :, None] == self.segments_k[:, None, None, -num_keys:])
        return mask

    def blocks(self, window: int | None, num_keys: int, q: Tensor) -> list[Block] | None:
        """How to compute what :meth:`mask` lets the queries ``q`` see in blocks; None: with that mask."""
        t = self.positions.shape[1]
        if q.device.type != "cpu" or torch.compiler.is_compiling() or num_keys != t:
            return None  # lengths of documents are numbers of the host, and no constants of a compiled graph
        if self.starts is None and (window is None or window >= t):
            return None
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else q.dtype
        if (window, dtype) not in self._blocks:
            starts = torch.zeros(1, t, dtype=torch.bool) if self.starts is None else self.starts
            self._blocks[window, dtype] = plan(starts, window, dtype)
        return self._blocks[window, dtype]

    def rotation(self, dim: int, base: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosine and sine of the rotary angles, (B or 1, 1, T, dim / 2), in float32 or better, once per pass."""
        if (dim, base) not in self._rotations:
            precision = torch.float64 if dtype == torch.float64 else torch.float32
            exponent = torch.arange(0, dim, 2, device=self.positions.device, dtype=precision) / dim
            angle = self.positions[:, None, :, None].to(precision) * base**-exponent
            self._rotations[dim, base] = (angle.cos(), angle.sin())
        return self._rotations[dim, base]
