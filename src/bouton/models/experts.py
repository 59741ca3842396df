"""Many feed-forward experts computed together: tokens sorted by expert, then one grouped product for each linear map.

Where torch has a grouped product for dtype and device, the rows of all experts follow one another (*packed*); elsewhere
every expert's are filled up to the largest load (*padded*) for a batched product. Both compute the same.

No token is dropped, so what a token gets depends on no other. The activation and the gates of the hidden layer are
shared by all experts; the branches beside the two linear maps see the mean over a token's experts, by their gates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bouton.models.initialize import Draw
from bouton.models.layers import Activation
from bouton.models.sockets import ExclusiveSocket, ListSocket, State

if TYPE_CHECKING:
    from bouton.models.context import Context
    from bouton.models.router import Choice
    from bouton.models.transformer import TransformerConfig


@dataclass(frozen=True)
class Dispatch:
    """The places (token, j) of a batch in rows sorted by expert.

    Attributes:
        row: (places,) where each place is.
        place: (rows,) which place each row holds. Padded, an expert's rows beyond its own hold a copy of place 0, which
            nobody reads.
        counts: (slots,) places per expert.
        ends: (slots,) int32, packed: where the rows of each expert end; None: padded.
        expert: (rows,) packed: whose row it is; padded: (A,) the experts that got any, None if all did.
        load: padded: rows per expert, the most that any got.
    """

    row: Tensor
    place: Tensor
    counts: Tensor
    ends: Tensor | None
    expert: Tensor | None
    load: int = 0

    @classmethod
    def of(cls, experts: Tensor, slots: int, *, packed: bool = False) -> Dispatch:
        """From the expert of every place, any shape."""
        flat = experts.flatten()
        counts = torch.bincount(flat, minlength=slots)
        order = flat.argsort(stable=True)
        expert = flat[order]
        if packed:
            row = torch.empty_like(order).scatter_(0, order, torch.arange(len(flat), device=flat.device))
            return cls(row, order, counts, counts.cumsum(0).int(), expert)
        active = counts.nonzero().flatten()
        load = int(counts.max())
        within = torch.arange(len(flat), device=flat.device) - (counts.cumsum(0) - counts)[expert]
        rows = ((counts > 0).cumsum(0) - 1)[expert] * load + within
        row = torch.empty_like(order).scatter_(0, order, rows)
        place = order.new_zeros(len(active) * load).scatter_(0, rows, order)
        return cls(row, place, counts, None, None if len(active) == slots else active, load)


def gini(share: Tensor) -> Tensor:
    """Gini coefficient of the shares (E,) that E experts have, which add up to 1: 0 if all are equal, to 1 - 1/E."""
    n = len(share)
    rank = torch.arange(1, n + 1, device=share.device)
    return ((2 * rank - n - 1) * share.sort().values).sum() / n


def can_pack(x: Tensor, *widths: int) -> bool:
    """Whether torch has a grouped product for vectors like ``x`` between spaces of these widths."""
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    if any(width * dtype.itemsize % 16 for width in widths):  # its rows must be aligned
        return False
    if device == "cpu":
        return dtype in (torch.float32, torch.bfloat16)
    return device == "cuda" and dtype == torch.bfloat16 and torch.cuda.get_device_capability(x.device) >= (9, 0)


class Experts(nn.Module):
    """``slots`` copies of the plain block: down(f(up(x))), with ``swiglu`` down(silu(gate(x)) * up(x)).

    Attributes:
        up, gate: (slots, width, hidden); down: (slots, hidden, width); and their biases, or None.
    """

    matrix_stacks = ("up", "gate", "down")  # an optimizer for matrices takes each expert's on its own

    def __init__(self, config: TransformerConfig, layer: int, slots: int, places: int) -> None:
        super().__init__()
        hidden, width = config.hidden_size, config.mixer_width
        self.slots, self.places, self.hidden, self.width = slots, places, hidden, width
        self.std = {"up": config.std(hidden), "gate": config.std(hidden), "down": config.residual_std(width)}
        self.up = nn.Parameter(torch.empty(slots, width, hidden))
        self.gate = nn.Parameter(torch.empty(slots, width, hidden)) if config.activation == "swiglu" else None
        self.down = nn.Parameter(torch.empty(slots, hidden, width))
        self.up_bias = nn.Parameter(torch.empty(slots, width)) if config.bias else None
        self.gate_bias = nn.Parameter(torch.empty(slots, width)) if config.bias and self.gate is not None else None
        self.down_bias = nn.Parameter(torch.empty(slots, hidden)) if config.bias else None
        self.activation = ExclusiveSocket("activation", layer, Activation(config.activation), width=width)
        self.gates = ListSocket(
            "mixer_gate", layer, width=width, activation=config.activation, bias=config.bias, std=config.std(width)
        )
        self.up_branch = ListSocket("branch", layer, site="mixer_up", in_features=hidden, out_features=width)
        self.down_branch = ListSocket("branch", layer, site="mixer_down", in_features=width, out_features=hidden)

    def initialize_parameters(self, draw: Draw) -> None:
        block = draw.module.rpartition(".")[0]
        for name, place in (("up", "up.linear"), ("gate", "gate"), ("down", "tail.down.linear")):
            weight, bias = getattr(self, name), getattr(self, f"{name}_bias")
            if weight is None:
                continue
            own = Draw(draw.seed, f"{block}.{place}")  # expert 0 starts as the plain block would
            for expert in range(self.slots):
                own.normal(weight[expert], self.std[name], f"weight/{expert}" if expert else "weight")
            if bias is not None:
                draw.constant(bias, 0.0)

    def stacks(self) -> list[nn.Parameter]:
        """All tensors that hold one entry per expert."""
        tensors = (self.up, self.gate, self.down, self.up_bias, self.gate_bias, self.down_bias)
        return [tensor for tensor in tensors if tensor is not None]

    def unit_dim(self, stack: nn.Parameter) -> int | None:
        """The dimension of an expert's entry of ``stack`` that counts hidden units; None: none does."""
        return None if stack is self.down_bias else 1 if stack is self.down else 0

    def units_are_exchangeable(self) -> bool:
        """Whether an expert with its hidden units in another order computes the same."""
        tensors = [*self.activation.parameters(), *self.activation.buffers()]
        return not (tensors or self.gates or self.up_branch or self.down_branch)

    def forward(self, x: Tensor, choice: Choice, ctx: Context, state: State | None) -> tuple[Tensor, State, Dispatch]:
        """x (B, T, hidden) -> (B, T, hidden), the state of the branches, and who did the work."""
        before: State = {} if state is None else state
        after: State = {}
        dispatch = Dispatch.of(choice.experts, self.slots, packed=can_pack(x, self.hidden, self.width))
        rows = x.flatten(0, 1).index_select(0, dispatch.place // choice.experts.shape[-1])
        value = _linear(rows, self.up, self.up_bias, dispatch)
        value, after["up"] = self._branch(self.up_branch, x, value, choice, dispatch, ctx, before.get("up"))
        hidden = value if self.gate is None else _linear(rows, self.gate, self.gate_bias, dispatch)
        hidden = self.activation(hidden[None])[0]  # as (1, rows, width): who watches it expects (B, T, width)
        if self.gate is not None:
            hidden = hidden * value
        hidden = self._gated(hidden, choice, dispatch, ctx)
        y = _linear(hidden, self.down, self.down_bias, dispatch)
        mixed = (_places(y, choice, dispatch) * choice.gates.unsqueeze(-1)).sum(2).to(y.dtype)
        if self.down_branch:
            inner = _mean(_places(hidden, choice, dispatch), choice)
            delta, after["down"] = _branches(self.down_branch, inner, mixed, ctx, before.get("down"))
            mixed = mixed + delta
        return mixed, {name: s for name, s in after.items() if s}, dispatch

    def _branch(
        self,
        branch: ListSocket,
        x: Tensor,
        rows: Tensor,
        choice: Choice,
        dispatch: Dispatch,
        ctx: Context,
        state: State | None,
    ) -> tuple[Tensor, State]:
        """``rows`` with what the branch adds to every expert of a token."""
        if not branch:
            return rows, {}
        places = _places(rows, choice, dispatch)
        delta, after = _branches(branch, x, _mean(places, choice), ctx, state)
        return _rows(places + delta.unsqueeze(2), dispatch), after

    def _gated(self, hidden: Tensor, choice: Choice, dispatch: Dispatch, ctx: Context) -> Tensor:
        """Rows through the gates, which see (B, T, width): one place after the other."""
        if not self.gates:
            return hidden
        places = list(_places(hidden, choice, dispatch).unbind(2))
        for _, gate in self.gates.items():
            places = [gate(place, ctx) for place in places]
        return _rows(torch.stack(places, 2), dispatch)

    def flops_per_token(self, seq_len: int) -> float:
        """Of the experts that a token has; not of the rows that the padded form adds."""
        maps = 2 if self.gate is None else 3
        return 2.0 * maps * self.places * self.hidden * self.width


def _linear(rows: Tensor, weight: Tensor, bias: Tensor | None, dispatch: Dispatch) -> Tensor:
    """(rows, in) -> (rows, out), each with its expert's weight (slots, out, in) and bias (slots, out)."""
    if dispatch.ends is not None:
        assert dispatch.expert is not None
        device = rows.device.type
        if torch.is_autocast_enabled(device):
            rows, weight = (t.to(torch.get_autocast_dtype(device)) for t in (rows, weight))
        y = F.grouped_mm(rows, weight.mT, offs=dispatch.ends)
        return y if bias is None else y + bias.index_select(0, dispatch.expert).to(y.dtype)
    if dispatch.expert is not None:
        weight = weight.index_select(0, dispatch.expert)
        bias = None if bias is None else bias.index_select(0, dispatch.expert)
    y = torch.bmm(rows.view(-1, dispatch.load, rows.shape[-1]), weight.mT)
    return (y if bias is None else y + bias.unsqueeze(1).to(y.dtype)).flatten(0, 1)


def _places(rows: Tensor, choice: Choice, dispatch: Dispatch) -> Tensor:
    """(rows, width) -> (B, T, k, width)."""
    return rows.index_select(0, dispatch.row).view(*choice.experts.shape, rows.shape[-1])


def _rows(places: Tensor, dispatch: Dispatch) -> Tensor:
    """(B, T, k, width) -> (rows, width)."""
    return places.flatten(0, 2).index_select(0, dispatch.place)


def _mean(places: Tensor, choice: Choice) -> Tensor:
    """(B, T, k, width) -> (B, T, width): the mean over a token's experts, weighted by their gates."""
    share = choice.gates / choice.gates.sum(-1, keepdim=True)
    return (places * share.unsqueeze(-1)).sum(2).to(places.dtype)


def _branches(branch: ListSocket, x: Tensor, slow: Tensor, ctx: Context, state: State | None) -> tuple[Tensor, State]:
    """The sum of what the parts add, and their state by mechanism."""
    total, after = torch.zeros_like(slow), {}
    for name, part in branch.items():
        delta, part_state = part(x, slow, ctx, None if state is None else state.get(name))
        total = total + delta
        if part_state:
            after[name] = part_state
    return total, after
