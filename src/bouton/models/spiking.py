"""A language model of spiking neurons: one token is one time step, the state of a sequence has a fixed size.

    k = 1[sigmoid(E[token]) > 1/2]                    a binary code; backward as if k were the sigmoid
    h = P k + c
    h <- h + sigmoid(W_g h + b_g) s,  s = LIF(LN(h))  in every block (:mod:`bouton.models.neurons`)
    logits = E (W_o LN(h) + b_o)                      LN without affine parameters, no bias per token

A block depends on what is below it and on its own past, so all linear maps but W_rec run over the whole sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bouton.mechanisms.parameters import Params, choice, integer, real
from bouton.mechanisms.vitals import Vitals
from bouton.models.body import Body
from bouton.models.context import Context
from bouton.models.initialize import AsDrawn, Draw
from bouton.models.labels import NUM_LABELS_DOC, SpikeLabels
from bouton.models.layers import Embedding, LayerNorm, Linear
from bouton.models.neurons import LIFLayer, report_activity
from bouton.models.sequences import check_tokens, positions_of, vectors_of
from bouton.models.sockets import ExclusiveSocket, ListSocket, State
from bouton.ops.lif import RESETS, SURROGATES

RESIDUALS = ("gated", "plain", "none")


@dataclass(frozen=True)
class SpikingConfig(Params):
    """Sizes and options of :class:`Spiking`. ``model.<field>`` in the configuration."""

    vocab_size: int = integer(257, "number of tokens in the vocabulary", low=1)
    num_labels: int | None = integer(None, NUM_LABELS_DOC, low=2)
    num_layers: int = integer(6, "number of blocks", low=1)
    hidden_size: int = integer(512, "neurons of a block", low=1)
    code_size: int = integer(256, "bits of a token's binary code", low=1)
    max_seq_len: int = integer(
        128, "tokens of a sequence that costs are counted for; none is too long", unit="tokens", low=1
    )
    residual: str = choice("gated", RESIDUALS, "how a block's spikes join the stream; none: they replace it")
    surrogate: str = choice("atan", tuple(SURROGATES), "derivative of a spike")
    alpha: float | None = real(None, "sharpness of the surrogate; null: its default", low=0, low_open=True)
    reset: str = choice("subtract", RESETS, "what a spike does to the membrane potential")


class BinaryEncoder(nn.Module):
    """tokens (B, T) -> bits (B, T, code), 1 where the table's entry is positive; gradient of the sigmoid."""

    def __init__(self, table: Embedding, vocab_size: int) -> None:
        super().__init__()
        self._table = [table]  # it belongs to the body, which reads logits from it too
        self.vocab_size = vocab_size

    def forward(self, tokens: Tensor, ctx: Context) -> Tensor:
        p = torch.sigmoid(vectors_of(self._table[0], tokens, self.vocab_size))
        # The bracket is exactly 0: the value is the bit, the gradient that of p.
        return (p > 0.5).to(p.dtype) + (p - p.detach())


class Projection(Linear):
    """From bits to the stream, centred at first: P (k - 1/2)."""

    def initialize_parameters(self, draw: Draw) -> None:
        super().initialize_parameters(draw)
        draw.constant(self.bias, -self.weight.detach().sum(dim=1) / 2)


class SpikingBlock(nn.Module):
    """One layer of neurons and how its spikes join the stream."""

    def __init__(self, config: SpikingConfig, layer: int, in_features: int) -> None:
        super().__init__()
        self.residual = config.residual != "none"
        self.norm = LayerNorm(in_features, bias=True) if self.residual else None
        self.neurons = LIFLayer(
            in_features, config.hidden_size, layer=layer, gated=config.residual == "gated",
            surrogate=config.surrogate, alpha=config.alpha, reset=config.reset,
        )  # fmt: skip

    def forward(self, h: Tensor, ctx: Context, state: State | None) -> tuple[Tensor, Tensor, State]:
        """h (B, T, in_features) -> the stream (B, T, hidden), the spikes, the state."""
        heard = h if self.norm is None else self.norm(h)
        y, spikes, after = self.neurons(heard, h, ctx, state)
        return (h + y if self.residual else y), spikes, after


class Spiking(Body):
    """Spiking language model. Its blocks are those of the mechanism ``lif``, so what refines that refines this body."""

    Config = SpikingConfig
    provides = ("lif",)
    reports_vitals = True

    def __init__(self, config: SpikingConfig) -> None:
        super().__init__()
        self.config = config
        self.num_labels = config.num_labels
        self.vocab_size, self.hidden_size = config.vocab_size, config.hidden_size
        self.num_layers, self.max_seq_len = config.num_layers, config.max_seq_len
        self.initializer = ExclusiveSocket("initializer", -1, AsDrawn())
        # As small as this its signs can still change in training; the loss at the start is that of a uniform guess.
        self.embedding = Embedding(config.vocab_size, config.code_size, std=config.code_size**-0.5)
        self.encoder = ExclusiveSocket("encoder", -1, BinaryEncoder(self.embedding, config.vocab_size))
        self.signals = ListSocket("signals", -1, vocab_size=config.vocab_size, hidden_size=config.hidden_size)
        residual = config.residual != "none"
        std = (3 * config.code_size) ** -0.5
        self.projection = Projection(config.code_size, config.hidden_size, bias=True, std=std) if residual else None
        sizes = [config.hidden_size if residual else config.code_size] + [config.hidden_size] * (config.num_layers - 1)
        self.layers = nn.ModuleList(SpikingBlock(config, layer, size) for layer, size in enumerate(sizes))
        std = (3 * config.hidden_size) ** -0.5
        # Labels are read from the stream and the last spikes.
        self.labels = None if config.num_labels is None else SpikeLabels(config.hidden_size, config.num_labels)
        # With a residual stream the readout goes through the code table; without, from the last spikes to the logits.
        text = config.num_labels is None
        through = text and residual
        self.readout = Linear(config.hidden_size, config.code_size, bias=True, std=std) if through else None
        direct = text and not residual
        self.head = Linear(config.hidden_size, config.vocab_size, bias=True, std=std) if direct else None

    def forward(
        self,
        tokens: Tensor,
        state: State | None = None,
        *,
        starts: Tensor | None = None,
        samples: Tensor | None = None,
        vitals: Vitals | None = None,
    ) -> tuple[Tensor, State]:
        h, spikes, after = self.trunk(tokens, state, starts=starts, samples=samples, vitals=vitals)
        if self.labels is not None:
            ctx = Context(positions_of(tokens, None if state is None else state["position"], starts), starts)
            logits, after["labels"] = self.labels(h, spikes, ctx, None if state is None else state["labels"])
        elif self.readout is None:
            assert self.head is not None
            logits = self.head(h)
        else:
            code = self.readout(F.layer_norm(h, (self.hidden_size,)))
            logits = F.linear(code, self.embedding.weight)
        self.report_vitals(vitals)
        return logits, after

    def trunk(
        self,
        tokens: Tensor,
        state: State | None = None,
        *,
        starts: Tensor | None = None,
        samples: Tensor | None = None,
        vitals: Vitals | None = None,
    ) -> tuple[Tensor, Tensor, State]:
        """What the readout reads: the stream (B, T, hidden), the spikes of the last block, and the state."""
        check_tokens(tokens, state, starts, samples)
        first = None if state is None else state["position"]
        ctx = Context(positions_of(tokens, first, starts), starts, samples=samples, vitals=vitals)
        after: dict[str, Any] = {"position": ctx.positions[:, -1] + 1, "layers": {}}
        h = self.encoder(tokens, ctx)
        if self.projection is not None:
            h = self.projection(h)
        for name, part in self.signals.items():
            h, signal_state = part(h, tokens, ctx, None if state is None else state.get("signals", {}).get(name))
            if signal_state:
                after.setdefault("signals", {})[name] = signal_state
        spikes = h
        for index, layer in enumerate(self.layers):
            before = None if state is None else state["layers"][str(index)]
            h, spikes, after["layers"][str(index)] = layer(h, ctx, before)
            report_activity("spiking", spikes, ctx, index)
        return h, spikes, after

    def flops_per_token(self, seq_len: int | None = None) -> float:
        flops = super().flops_per_token(seq_len)
        return flops + (0.0 if self.readout is None else 2.0 * self.config.code_size * self.vocab_size)
