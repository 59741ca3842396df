"""How presynaptic-fatigue attention is cut into tiles: blocks of queries by the keys that any of them may see."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bouton.ops.fatigue_attention import reference
from bouton.ops.fatigue_attention.reference import Kinetics, visible


@dataclass
class Plan:
    """The inputs in the precision of the arithmetic, laid out for batched products, and the tiling."""

    q: Tensor  # (B, Hq, Tq, D), scaled by 1 / sqrt(D)
    k: Tensor  # (B * Hkv, Tk, D)
    v: Tensor
    kin: Kinetics  # (N, 1, 1), N = B * Hq
    window: int | None
    segments_q: Tensor | None
    segments_k: Tensor | None
    bias: Tensor | None
    release: str
    unit_strength: bool  # the strength is 1 in every head
    queries_per_block: int

    @classmethod
    def make(
        cls,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        kinetics: Tensor,
        segments_q: Tensor | None,
        segments_k: Tensor | None,
        window: int,
        bias: Tensor | None,
        release: str,
        queries_per_block: int,
    ) -> Plan:
        dtype = reference.precision(q)
        batch, tk = q.shape[0], k.shape[2]
        kin = Kinetics(*(x.to(dtype).repeat(batch)[:, None, None] for x in kinetics.unbind(0)))
        # Only on the CPU is the look at the values free; elsewhere it would wait for the device.
        unit = kinetics.device.type == "cpu" and bool((kinetics[Kinetics._fields.index("lam")] == 1).all())
        return cls(
            q.to(dtype) * q.shape[-1] ** -0.5,
            k.to(dtype).reshape(-1, tk, k.shape[-1]),
            v.to(dtype).reshape(-1, tk, v.shape[-1]),
            kin,
            window or None,
            segments_q,
            segments_k,
            None if bias is None else bias.to(dtype),
            release,
            unit,
            queries_per_block,
        )

    @property
    def heads(self) -> int:
        return self.q.shape[0] * self.q.shape[1]

    @property
    def tq(self) -> int:
        return self.q.shape[2]

    @property
    def tk(self) -> int:
        return self.k.shape[1]

    def tiles(self) -> Iterator[tuple[int, int, int, int]]:
        """start, stop of the queries; low, high of the keys that any of them may see."""
        old = self.tk - self.tq
        for start in range(0, self.tq, self.queries_per_block):
            stop = min(start + self.queries_per_block, self.tq)
            low = 0 if self.window is None else max(0, old + start - self.window + 1)
            yield start, stop, low, old + stop

    def grouped(self, x: Tensor) -> Tensor:
        """(B, Hq, t, D) or (N, t, m) -> (B * Hkv, queries of the group, D or m)."""
        return x.reshape(self.k.shape[0], -1, x.shape[-1])

    def seen(self, start: int, stop: int, low: int, high: int) -> Tensor:
        """bool (B or 1, 1, t, m)."""
        mask = visible(start, stop, self.tq, self.tk, self.window, self.segments_q, self.segments_k, self.k.device)
        return mask[..., low:high]

    def activity_input(self, start: int, stop: int, low: int, high: int) -> tuple[Tensor, Tensor | None, Tensor]:
        """Masked logits (N, t, m), the mask (N or 1, t, m) where the release needs it, and the grouped queries."""
        q = self.grouped(self.q[:, :, start:stop])
        shape = (self.q.shape[0], self.q.shape[1], stop - start, high - low)
        logits = torch.bmm(q, self.k[:, low:high].transpose(1, 2)).view(shape)
        if self.bias is not None:
            logits += tile_of(self.bias, start, stop, low, high)
        mask: Tensor | None = None
        if self.window is None and self.segments_q is None and self.release == "kinetic":
            # Only the last t keys of the row are not all seen.
            t = stop - start
            future = torch.ones(t, t, dtype=torch.bool, device=logits.device).triu_(1)
            logits[..., -t:].masked_fill_(future, -torch.inf)
        else:
            mask = self.seen(start, stop, low, high)
            logits.masked_fill_(~mask, -torch.inf)
            mask = mask.expand(shape[0], shape[1], -1, -1).reshape(-1, *shape[2:])
        return logits.view(-1, *shape[2:]), mask, q

    def idle_steps(self) -> Tensor | None:
        """(Tk,) how many last queries are beyond the window of each key's tiles; None without a window."""
        if self.window is None:
            return None
        steps = torch.zeros(self.tk, dtype=self.k.dtype, device=self.k.device)
        before = 0
        for start, _, low, _ in self.tiles():
            steps[before:low] = self.tq - start
            before = max(before, low)
        return steps


def tile_of(x: Tensor, start: int, stop: int, low: int, high: int) -> Tensor:
    """The tile of a tensor (B or 1, H or 1, Tq or 1, Tk or 1)."""
    if x.shape[2] != 1:
        x = x[:, :, start:stop]
    return x if x.shape[3] == 1 else x[..., low:high]
