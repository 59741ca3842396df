"""reversible: two coupled streams go through the blocks, and the backward pass recomputes what was between them.

    a = b = x;     per block   a <- a + attention(norm(b)),   b <- b + mixer(norm(a));     x' = (a + b) / 2

Each step can be undone, and so keeps volume; the activations of all reversible blocks together take the memory of two
streams, at the price of computing every block a second time. :mod:`bouton.models.reversible` has the passes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from bouton.errors import ConfigError
from bouton.mechanisms.base import Mechanism
from bouton.mechanisms.parameters import Params, choice, integer
from bouton.mechanisms.registry import register
from bouton.models.context import Context
from bouton.models.reversible import Passage, reversible
from bouton.models.sockets import State

if TYPE_CHECKING:
    from bouton.mechanisms.vitals import Vitals
    from bouton.models.body import Body


@dataclass(frozen=True)
class ReversibleParams(Params):
    """Parameters of :class:`Reversible`."""

    blocks: int | None = integer(
        None, "how many blocks, counted from the last, are reversible; null: all, 0: none", unit="blocks", low=0
    )
    start: str = choice(
        "copy", ("copy", "zero"), "first stream: a copy of x, and the streams' mean goes on; or 0, and their sum does"
    )


class CoupledStack(nn.Module):
    """The part in the ``stack`` socket."""

    def __init__(self, body: Body, blocks: int, start: str) -> None:
        super().__init__()
        self.blocks, self.start = blocks, start
        self._body = (body,)  # in a tuple: it is no child of this part

    def forward(self, x: Tensor, layers: nn.ModuleList, ctx: Context, state: State | None) -> tuple[Tensor, State]:
        """x (B, T, hidden) -> the same shape, and the state of every block by its index."""
        body = self._body[0]
        after: State = {}
        plain = len(layers) - self.blocks
        for i in range(plain):
            x, after[str(i)] = layers[i](x, ctx, None if state is None else state[str(i)])
        chosen = [(str(i), layers[i]) for i in range(plain, len(layers))]
        own = None if state is None else {index: state[index] for index, _ in chosen}
        # Each inversion rounds: streams in less than float32 would come back wrong.
        stream = x.to(torch.promote_types(x.dtype, torch.float32))
        streams = [stream if self.start == "copy" else torch.zeros_like(stream), stream]
        passage = Passage(chosen, ctx, own, body.mechanism_list(), x.dtype)
        parameters = [p for p in body.parameters() if p.requires_grad]
        results, by_block = reversible(passage, list(streams), parameters)
        if ctx.vitals is not None:
            self._report(ctx, passage, streams, results)
        total = results[0] + results[1]
        merged = total / 2 if self.start == "copy" else total
        return merged.to(x.dtype), {**after, **by_block}

    @torch.no_grad()
    def _report(self, ctx: Context, passage: Passage, before: list[Tensor], after: list[Tensor]) -> None:
        found = passage.inverse([stream.detach() for stream in after])
        error = max(float((a - b).abs().max()) for a, b in zip(found, before, strict=True))
        ctx.report(Reversible.name, "reconstruction_error", error / max(float(before[1].abs().max()), 1e-30), -1)
        first, second = (stream.flatten() for stream in after)
        cosine = torch.nn.functional.cosine_similarity(first, second, dim=0)
        ctx.report(Reversible.name, "streams_cosine", cosine, -1)

    def extra_repr(self) -> str:
        return f"blocks={self.blocks}, start={self.start}"


@register
class Reversible(Mechanism):
    """Reversible blocks: activation memory that does not grow with depth."""

    name = "reversible"
    summary = "two coupled streams whose activations are recomputed by inversion in the backward pass"
    source = "Gomez, Ren, Urtasun and Grosse 2017 (RevNet); Kitaev, Kaiser and Levskaya 2020 (Reformer)"
    sockets = ("stack",)
    Params = ReversibleParams
    state = "none of its own; the blocks have theirs"
    neutral: ClassVar[Mapping[str, Any] | None] = {"blocks": 0}
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {"last": {"blocks": 1, "start": "zero"}}
    vital_names: ClassVar[Mapping[str, str]] = {
        "reconstruction_error": "largest error of the inverted streams / largest value of what they started from",
        "streams_cosine": "cosine between both streams after the last block",
    }

    def plug(self, body: Body) -> None:
        blocks = body.num_layers if self.hp.blocks is None else self.hp.blocks
        if blocks > body.num_layers:
            raise ConfigError(f"blocks = {blocks} is more than model.num_layers = {body.num_layers}: use at most that")
        self.recomputes = blocks > 0
        for socket in body.sockets("stack"):
            socket.plug(self, socket.part if blocks == 0 else CoupledStack(body, blocks, self.hp.start))

    def report(self, vitals: Vitals) -> None:
        if self.hp.blocks == 0:  # nothing is inverted, and there is one stream
            vitals.add(self.name, "reconstruction_error", 0.0, -1)
            vitals.add(self.name, "streams_cosine", 1.0, -1)
