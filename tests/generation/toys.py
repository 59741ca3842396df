"""Tiny bodies for tests of generation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bouton.models.body import Body
from bouton.models.initialize import initialize
from bouton.models.sockets import State
from bouton.models.transformer import Transformer, TransformerConfig


def tiny(seed: int = 0, **options: Any) -> Transformer:
    """A random body in float64 whose logits spread enough for sampling to be interesting."""
    sizes: dict[str, Any] = {"vocab_size": 257, "num_layers": 2, "hidden_size": 16, "num_heads": 2, "init_std": 0.4}
    model = Transformer(TransformerConfig(**{**sizes, "max_seq_len": 64, **options}))
    initialize(model, seed)
    return model.double()


class Script(Body):
    """Emits a fixed string of bytes whatever it is told; its state counts the tokens."""

    def __init__(self, text: bytes, eot: bool = False, vocab_size: int = 257) -> None:
        super().__init__()
        self.script = [*text, *([256] if eot else [])]
        self.vocab_size, self.hidden_size, self.num_layers, self.max_seq_len = vocab_size, 1, 1, 1 << 20
        self.anchor = torch.nn.Parameter(torch.zeros(1))
        self.calls = 0

    def forward(
        self, tokens: Tensor, state: State | None = None, *, starts: Tensor | None = None, vitals: Any = None
    ) -> tuple[Tensor, State]:
        self.calls += 1
        batch, t = tokens.shape
        done = torch.full((batch,), -1) if state is None else state["done"]
        done = done + 1 if state is not None else torch.zeros(batch, dtype=torch.int64)
        logits = torch.full((batch, t, self.vocab_size), -10.0)
        for row in range(batch):
            logits[row, -1, self.script[int(done[row]) % len(self.script)]] = 10.0
        return logits, {"done": done}
