"""The decoder-only transformer: the plain body that every claim is compared with.

Modern by default (RMSNorm, RoPE, QK-norm, squared ReLU); GPT-2's shape (LayerNorm, learned positions, biases) is a
set of options of the same code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bouton.errors import ConfigError
from bouton.mechanisms.parameters import Params, choice, flag, integer, real
from bouton.mechanisms.vitals import Vitals
from bouton.models.attention import Attention
from bouton.models.body import Body
from bouton.models.context import Context
from bouton.models.initialize import AsDrawn
from bouton.models.labels import NUM_LABELS_DOC, label_head
from bouton.models.layers import ACTIVATIONS, Embedding, Linear, make_norm
from bouton.models.mixers import MLP
from bouton.models.sequences import check_tokens, vectors_of
from bouton.models.sockets import ExclusiveSocket, ListSocket, State


@dataclass(frozen=True)
class TransformerConfig(Params):
    """Sizes and options of :class:`Transformer`. ``model.<field>`` in the configuration."""

    vocab_size: int = integer(257, "number of tokens in the vocabulary", low=1)
    num_labels: int | None = integer(None, NUM_LABELS_DOC, low=2)
    num_layers: int = integer(6, "number of blocks", low=1)
    hidden_size: int = integer(256, "width of the residual stream", low=1)
    num_heads: int = integer(4, "number of query heads", low=1)
    num_kv_heads: int | None = integer(None, "number of key/value heads (GQA); null: as many as query heads", low=1)
    head_dim: int | None = integer(None, "width of a head; null: hidden_size / num_heads", low=1)
    max_seq_len: int = integer(1024, "longest sequence; binding for learned positions", unit="tokens", low=1)
    mixer_ratio: float = real(4.0, "width of the mixer / hidden_size (swiglu takes 2/3 of it)", low=0, low_open=True)
    activation: str = choice("relu2", tuple(ACTIVATIONS), "the mixer's non-linearity")
    norm: str = choice("rmsnorm", ("rmsnorm", "layernorm"), "normalisation of the residual stream")
    embedding_norm: bool = flag(True, "normalise the token vectors before the first block")
    position: str = choice("rope", ("rope", "learned", "none"), "how positions are told")
    rope_base: float = real(10000.0, "base of the rotary frequencies", low=1, low_open=True, scale="log")
    qk_norm: bool = flag(True, "RMS-normalise queries and keys: bounds the attention logits by sqrt(head_dim)")
    bias: bool = flag(False, "biases in linear maps and LayerNorm")
    tied_embeddings: bool = flag(True, "the output head shares the embedding table")
    logit_softcap: float | None = real(None, "c: logits become c tanh(logits / c); null: off", low=0, low_open=True)
    window: int | None = integer(None, "sliding-window attention: keys seen, itself included; null: all", low=1)
    full_attention_every: int | None = integer(None, "with a window: every n-th block attends to everything", low=1)
    dropout: float = real(0.0, "dropout on the embedding and both residual branches", low=0, high=1, high_open=True)
    init_std: float | None = real(None, "std of the weights; null: 1/sqrt(fan-in)", low=0, low_open=True)

    def check(self) -> None:
        if self.head_dim is None and self.hidden_size % self.num_heads:
            raise ConfigError(
                f"hidden_size = {self.hidden_size} is not divisible by num_heads = {self.num_heads}: choose a multiple "
                f"or set head_dim"
            )
        if self.num_heads % self.kv_heads:
            raise ConfigError(f"num_kv_heads = {self.kv_heads} does not divide num_heads = {self.num_heads}")
        if self.position == "rope" and self.head_size % 2:
            raise ConfigError(f"head_dim = {self.head_size} is odd: rotary positions need an even one")
        if self.full_attention_every is not None and self.window is None:
            raise ConfigError(f"full_attention_every = {self.full_attention_every} has no effect without window")

    @property
    def kv_heads(self) -> int:
        """Number of key/value heads."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def head_size(self) -> int:
        """Width of a head."""
        return self.hidden_size // self.num_heads if self.head_dim is None else self.head_dim

    @property
    def mixer_width(self) -> int:
        """Width of the mixer's hidden layer; a gated one has three matrices, so 2/3 of the width is the same cost."""
        if self.activation == "swiglu":
            return max(8, round(self.mixer_ratio * self.hidden_size * 2 / 3 / 8) * 8)
        return max(1, round(self.mixer_ratio * self.hidden_size))

    def layer_window(self, layer: int) -> int | None:
        """The window of block ``layer``, None if it attends to everything."""
        every = self.full_attention_every
        return None if every is not None and (layer + 1) % every == 0 else self.window

    def std(self, fan_in: int) -> float:
        """Standard deviation of a weight matrix."""
        return 1 / math.sqrt(fan_in) if self.init_std is None else self.init_std

    def residual_std(self, fan_in: int) -> float:
        """The same for a map that writes to the residual stream: smaller, so that depth does not grow it (GPT-2)."""
        return self.std(fan_in) / math.sqrt(2 * self.num_layers)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mixer(norm(x))."""

    branches = ("attention", "mixer")

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = make_norm(config.norm, config.hidden_size, config.bias)
        self.attention = Attention(config, layer)
        self.mixer_norm = make_norm(config.norm, config.hidden_size, config.bias)
        self.mixer = ExclusiveSocket("mixer", layer, MLP(config, layer), config=config)
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()

    def forward(self, x: Tensor, ctx: Context, state: State | None) -> tuple[Tensor, State]:
        """x (B, T, hidden) -> the same shape, and the state of this block."""
        before: State = {} if state is None else state
        after: State = {}
        for name in self.branches:
            y, branch_state = self.branch(name, x, ctx, before.get(name))
            x = x + y
            if branch_state:
                after[name] = branch_state
        return x, after

    def branch(self, name: str, x: Tensor, ctx: Context, state: State | None) -> tuple[Tensor, State]:
        """What one of :attr:`branches` adds to the residual stream x (B, T, hidden), and its state."""
        if name == "attention":
            y, after = self.attention(self.attention_norm(x), ctx, state)
        else:
            y, after = self.mixer(self.mixer_norm(x), ctx, state)
        return self.dropout(y), after


class Stack(nn.Module):
    """The plain way through the blocks: one after the other."""

    def forward(self, x: Tensor, layers: nn.ModuleList, ctx: Context, state: State | None) -> tuple[Tensor, State]:
        """x (B, T, hidden) -> the same shape, and the state of every block by its index."""
        after: State = {}
        for index, layer in enumerate(layers):
            x, after[str(index)] = layer(x, ctx, None if state is None else state[str(index)])
        return x, after


class Transformer(Body):
    """Decoder-only language model (Vaswani et al. 2017; Radford et al. 2019) with sockets."""

    Config = TransformerConfig

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.num_labels = config.num_labels
        self.vocab_size, self.hidden_size = config.vocab_size, config.hidden_size
        self.num_layers, self.max_seq_len = config.num_layers, config.max_seq_len
        self.initializer = ExclusiveSocket("initializer", -1, AsDrawn())  # before what it fills
        std = 0.02 if config.init_std is None else config.init_std
        self.embedding = Embedding(config.vocab_size, config.hidden_size, std=std)
        learned = config.position == "learned"
        self.position = Embedding(config.max_seq_len, config.hidden_size, std=std) if learned else None
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        self.signals = ListSocket("signals", -1, vocab_size=config.vocab_size, hidden_size=config.hidden_size)
        self.stack = ExclusiveSocket("stack", -1, Stack(), config=config)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = make_norm(config.norm, config.hidden_size, config.bias)
        self.head: Linear | None = None  # the embedding table is the head
        if config.num_labels is not None:
            self.head = label_head(config.hidden_size, config.num_labels)
        elif not config.tied_embeddings:
            self.head = Linear(config.hidden_size, config.vocab_size, bias=False, std=std)

    def forward(
        self,
        tokens: Tensor,
        state: State | None = None,
        *,
        starts: Tensor | None = None,
        samples: Tensor | None = None,
        vitals: Vitals | None = None,
    ) -> tuple[Tensor, State]:
        check_tokens(tokens, state, starts, samples)
        ctx, after = self._context(tokens, state, starts, vitals)
        ctx.samples = samples
        x = vectors_of(self.embedding, tokens, self.vocab_size)
        if self.position is not None:
            if state is not None or tokens.shape[1] > self.max_seq_len:
                self._check_length(ctx.positions)
            x = x + self.position(ctx.positions)
        if self.config.embedding_norm:
            x = F.rms_norm(x, (self.hidden_size,))
        x = self.dropout(x)
        for name, part in self.signals.items():
            x, signal_state = part(x, tokens, ctx, None if state is None else state.get("signals", {}).get(name))
            if signal_state:
                after.setdefault("signals", {})[name] = signal_state
        x, after["layers"] = self.stack(x, self.layers, ctx, None if state is None else state["layers"])
        x = self.norm(x)
        logits = F.linear(x, self.embedding.weight) if self.head is None else self.head(x)
        if (cap := self.config.logit_softcap) is not None:
            logits = cap * torch.tanh(logits / cap)
        self.report_vitals(vitals)
        return logits, after

    def _context(
        self, tokens: Tensor, state: State | None, starts: Tensor | None, vitals: Vitals | None
    ) -> tuple[Context, State]:
        """Positions and documents of the new tokens, and the skeleton of the next state."""
        batch, t = tokens.shape
        index = torch.arange(t, device=tokens.device)
        if state is None and starts is None:
            # One document per row from its beginning: no masks needed, every row has the same positions.
            segments = torch.zeros(batch, t, dtype=torch.int64, device=tokens.device)
            position = torch.full((batch,), t, dtype=torch.int64, device=tokens.device)
            after = {"position": position, "segments": self._visible(segments)}
            return Context(index[None], vitals=vitals), after
        zero = torch.zeros(batch, dtype=torch.int64, device=tokens.device)
        first = zero if state is None else state["position"]
        segment = zero[:, None] if state is None else state["segments"][:, -1:]
        if starts is None:
            positions, segments = first[:, None] + index, segment.expand(batch, t)
        else:
            latest = torch.where(starts, index, -1).cummax(dim=1).values
            positions = torch.where(latest >= 0, index - latest, first[:, None] + index)
            segments = segment + starts.long().cumsum(dim=1)
        keys = segments if state is None else torch.cat((state["segments"], segments), dim=1)
        after = {"position": positions[:, -1] + 1, "segments": self._visible(keys)}
        return Context(positions, starts, segments, keys, vitals=vitals), after

    def _visible(self, segments: Tensor) -> Tensor:
        """The documents of the keys that a later query may see (at least the last one, to go on from)."""
        windows = [self.config.layer_window(layer) for layer in range(self.num_layers)]
        if any(window is None for window in windows):
            return segments
        return segments[:, -max(1, max(w - 1 for w in windows if w is not None)) :]

    def _check_length(self, positions: Tensor) -> None:
        if (longest := int(positions.max())) >= self.max_seq_len:
            raise ConfigError(
                f"position {longest} is beyond model.max_seq_len = {self.max_seq_len}: learned positions end there "
                f"(model.position=rope has no such end)"
            )

    def flops_per_token(self, seq_len: int | None = None) -> float:
        flops = super().flops_per_token(seq_len)
        return flops + (2.0 * self.hidden_size * self.vocab_size if self.head is None else 0.0)
