"""A gated recurrent language model (Cho et al. 2014): the control of equal parameters for other recurrent bodies.

h <- h + GRU(norm(h)) in every block, the output head shares the embedding table. The state of a sequence is one vector
per block.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bouton.mechanisms.parameters import Params, integer
from bouton.mechanisms.vitals import Vitals
from bouton.models.body import Body
from bouton.models.context import Context
from bouton.models.initialize import AsDrawn, Draw
from bouton.models.labels import NUM_LABELS_DOC, label_head
from bouton.models.layers import Embedding, RMSNorm
from bouton.models.sequences import check_tokens, positions_of, vectors_of
from bouton.models.sockets import ExclusiveSocket, ListSocket, State


@dataclass(frozen=True)
class GRUConfig(Params):
    """Sizes of :class:`GRU`. ``model.<field>`` in the configuration."""

    vocab_size: int = integer(257, "number of tokens in the vocabulary", low=1)
    num_labels: int | None = integer(None, NUM_LABELS_DOC, low=2)
    num_layers: int = integer(2, "number of blocks", low=1)
    hidden_size: int = integer(512, "width of the stream and of the state of a block", low=1)
    max_seq_len: int = integer(
        128, "tokens of a sequence that costs are counted for; none is too long", unit="tokens", low=1
    )


class GRULayer(nn.GRU):
    """torch's GRU, one layer, with states that start anew where documents do."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, batch_first=True)

    def reset_parameters(self) -> None:
        """Nothing: ``initialize`` fills the tensors."""

    def initialize_parameters(self, draw: Draw) -> None:
        bound = self.hidden_size**-0.5
        for name, parameter in self.named_parameters(recurse=False):
            draw.uniform(parameter, -bound, bound, name)

    def flops_per_token(self, seq_len: int) -> float:
        return 2.0 * 3 * self.hidden_size * (self.input_size + self.hidden_size)

    def run(self, x: Tensor, h: Tensor | None, starts: Tensor | None) -> tuple[Tensor, Tensor]:
        """x (B, T, width), h (B, width) -> what it says (B, T, width), and h after the last token."""
        if h is None:
            h = x.new_zeros(x.shape[0], self.hidden_size)
        if starts is None:
            y, last = self(x, h.to(x.dtype)[None])
            return y, last[0]
        # In pieces between the tokens at which some row begins a document.
        borders = torch.nonzero(starts.any(dim=0)).flatten().tolist()
        edges = sorted({0, *borders, x.shape[1]})
        parts = []
        for begin, end in itertools.pairwise(edges):
            h = h.masked_fill(starts[:, begin, None], 0.0)
            y, last = self(x[:, begin:end], h.to(x.dtype)[None].contiguous())
            parts.append(y)
            h = last[0]
        return torch.cat(parts, dim=1), h


class GRUBlock(nn.Module):
    """h + GRU(norm(h))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = RMSNorm(width)
        self.gru = GRULayer(width)

    def forward(self, h: Tensor, ctx: Context, state: State | None) -> tuple[Tensor, State]:
        """h (B, T, width) -> the same shape, and the state."""
        y, last = self.gru.run(self.norm(h), None if state is None else state["h"], ctx.starts)
        return h + y, {"h": last}


class GRU(Body):
    """Language model of gated recurrent units."""

    Config = GRUConfig

    def __init__(self, config: GRUConfig) -> None:
        super().__init__()
        self.config = config
        self.num_labels = config.num_labels
        self.vocab_size, self.hidden_size = config.vocab_size, config.hidden_size
        self.num_layers, self.max_seq_len = config.num_layers, config.max_seq_len
        self.initializer = ExclusiveSocket("initializer", -1, AsDrawn())
        self.embedding = Embedding(config.vocab_size, config.hidden_size, std=0.02)
        self.signals = ListSocket("signals", -1, vocab_size=config.vocab_size, hidden_size=config.hidden_size)
        self.layers = nn.ModuleList(GRUBlock(config.hidden_size) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size)
        self.head = None if config.num_labels is None else label_head(config.hidden_size, config.num_labels)

    def forward(
        self,
        tokens: Tensor,
        state: State | None = None,
        *,
        starts: Tensor | None = None,
        samples: Tensor | None = None,
        vitals: Vitals | None = None,
    ) -> tuple[Tensor, State]:
        h, after = self.trunk(tokens, state, starts=starts, samples=samples, vitals=vitals)
        self.report_vitals(vitals)
        return F.linear(h, self.embedding.weight) if self.head is None else self.head(h), after

    def trunk(
        self,
        tokens: Tensor,
        state: State | None = None,
        *,
        starts: Tensor | None = None,
        samples: Tensor | None = None,
        vitals: Vitals | None = None,
    ) -> tuple[Tensor, State]:
        """What the head reads, (B, T, hidden), and the state."""
        check_tokens(tokens, state, starts, samples)
        positions = positions_of(tokens, None if state is None else state["position"], starts)
        ctx = Context(positions, starts, samples=samples, vitals=vitals)
        after: dict[str, Any] = {"position": positions[:, -1] + 1, "layers": {}}
        h = F.rms_norm(vectors_of(self.embedding, tokens, self.vocab_size), (self.hidden_size,))
        for name, part in self.signals.items():
            h, signal_state = part(h, tokens, ctx, None if state is None else state.get("signals", {}).get(name))
            if signal_state:
                after.setdefault("signals", {})[name] = signal_state
        for index, layer in enumerate(self.layers):
            h, after["layers"][str(index)] = layer(h, ctx, None if state is None else state["layers"][str(index)])
        return self.norm(h), after

    def flops_per_token(self, seq_len: int | None = None) -> float:
        flops = super().flops_per_token(seq_len)
        return flops + (2.0 * self.hidden_size * self.vocab_size if self.head is None else 0.0)
