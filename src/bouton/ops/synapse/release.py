"""What is read of a synapse that releases whole vesicles: (1/N) Binomial(N, W) in place of its mean W.

A share of the query positions is drawn, the same ones in all heads; at the others the mean is read. The pool drains by
the mean everywhere. Every number is keyed by (seed, optimizer step, layer, sample), of which :func:`stream` makes one
key per row, and by the positions t of the query and j of the key in their document, the head, and the vesicle.

    normal_reparam       W + sqrt(W (1 - W) / N) z, clipped: its gradient is that of the sample itself
    gumbel_sigmoid_ste   N spikes 1[sigmoid((logit W + l_i) / tau) > 1/2], l_i logistic; gradient of the sigmoids
                         (Jang, Gu and Poole 2017; Maddison, Mnih and Teh 2017)
    straight_through     the count of u_i < W, exactly binomial; gradient of the mean (Bengio, Leonard, Courville 2013)

At most ``cap`` vesicles leave at once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bouton.ops.synapse.random import fold, normal, uniforms

MODES = ("normal_reparam", "gumbel_sigmoid_ste", "straight_through")
MAX_VESICLES = 64
_CHOICE, _VALUES = 0, 1  # the two uses of a row's key
_SMALLEST_VARIANCE = 1e-20  # the slope of the square root is unbounded at 0


class Binomial(NamedTuple):
    """How releases are drawn."""

    mode: str
    vesicles: int  # N
    cap: int  # most vesicles that leave at once, 1 .. N
    tau: float  # temperature of the relaxation
    fraction: float | Tensor  # of the query positions; a tensor: the chance of each, (B, Tq)
    stream: Tensor  # (B,) int64, the key of each row
    positions: Tensor  # (B or 1, Tq) int64, of the queries in their documents


def stream(seed: Tensor, step: Tensor, layer: int, samples: Tensor) -> Tensor:
    """The key of each row, (B,) int64: ``seed`` and ``step`` () int64, ``samples`` (B,) int64."""
    return fold(fold(fold(seed, step), layer), samples)


def drawn(noise: Binomial, start: int, stop: int) -> Tensor:
    """At which of the queries ``start <= t < stop`` releases are drawn: (B, t) bool, the same in all heads."""
    key = fold(noise.stream, _CHOICE)[:, None]
    first, _ = uniforms(fold(key, noise.positions[:, start:stop]), torch.float64)
    return first < (noise.fraction[:, start:stop] if isinstance(noise.fraction, Tensor) else noise.fraction)


def read(released: Tensor, noise: Binomial, start: int, distance: Tensor) -> Tensor:
    """What is read where the mean release is ``released``.

    Args:
        released: (B, H, t, m), W.
        noise: how to draw.
        start: index of the first of the t queries among all.
        distance: (t, m) int64, tokens from each key to each query.
    """
    rows, queries = drawn(noise, start, start + released.shape[2]).nonzero(as_tuple=True)
    mean = released.transpose(1, 2)  # (B, t, H, m)
    positions = noise.positions.expand(released.shape[0], -1)[rows, start + queries]
    key = fold(fold(noise.stream, _VALUES)[rows], positions)
    heads = torch.arange(released.shape[1], device=released.device)
    key = fold(key[:, None], heads)[:, :, None]
    keys = (positions[:, None] - distance[queries])[:, None]
    sample = _draw(mean[rows, queries].clamp(0, 1), noise, key, keys)
    return mean.index_put((rows, queries), sample).transpose(1, 2)


def _draw(w: Tensor, noise: Binomial, key: Tensor, keys: Tensor) -> Tensor:
    """A sample of the release (n, H, m) for the keys at positions ``keys`` (n, 1, m)."""
    most = noise.cap / noise.vesicles
    if noise.mode == "normal_reparam":
        variance = w * (1 - w) / noise.vesicles
        certain = variance < _SMALLEST_VARIANCE
        deviation = variance.clamp_min(_SMALLEST_VARIANCE).sqrt().masked_fill(certain, 0.0)
        return (w + deviation * normal(fold(key, keys * MAX_VESICLES), w.dtype)).clamp(0, most)
    count = torch.zeros_like(w)
    soft = torch.zeros_like(w)
    relaxed = noise.mode == "gumbel_sigmoid_ste"
    logit = torch.logit(w, eps=1e-6) if relaxed else w
    for pair in range(-(-noise.vesicles // 2)):
        for vesicle, u in enumerate(uniforms(fold(key, keys * MAX_VESICLES + pair), w.dtype), 2 * pair):
            if vesicle < noise.vesicles:
                count = count + (u < w.detach())
                if relaxed:
                    soft = soft + torch.sigmoid((logit - torch.logit(u)) / noise.tau)
    smooth = (soft / noise.vesicles if relaxed else w).clamp_max(most)
    return smooth + (count.clamp_max(noise.cap) / noise.vesicles - smooth).detach()
