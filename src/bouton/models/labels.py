"""Heads of bodies that say the label of a token instead of the next token (``num_labels``)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bouton.models.context import Context
from bouton.models.layers import Linear
from bouton.models.sockets import State
from bouton.ops.scan import affine_scan

NUM_LABELS_DOC = "labels of a token, read instead of the next token; null: those of the data, none for text"
TRACE_DECAY = 0.8  # per token: a memory of about five


def label_head(hidden_size: int, num_labels: int) -> Linear:
    """From the stream (..., hidden) to the logits of the labels."""
    return Linear(hidden_size, num_labels, bias=True, std=(3 * hidden_size) ** -0.5)


class SpikeLabels(nn.Module):
    """Labels from the stream and from a low-pass trace of the last spikes.

    m_t = a m_{t-1} + (1 - a) s_t,  logits = W [h_t, m_t] + b
    """

    def __init__(self, hidden_size: int, num_labels: int) -> None:
        super().__init__()
        self.linear = label_head(2 * hidden_size, num_labels)

    def forward(self, h: Tensor, spikes: Tensor, ctx: Context, state: State | None) -> tuple[Tensor, State]:
        """h and spikes (B, T, hidden) -> logits (B, T, num_labels), and the trace after the last token."""
        before = None if state is None else state["trace"]
        trace, after = affine_scan(TRACE_DECAY, (1 - TRACE_DECAY) * spikes.to(h.dtype), before, ctx.starts)
        return self.linear(torch.cat((h, trace), dim=-1)), {"trace": after}
