"""The router of a mixture of experts: top-k over the roots of a routing tree, then one expert per choice.

A choice that leads to a node goes on to exactly one of the node's two children, by the sign of the node's logit, with
weight 1. The gradient reaches the node's row as if the weight were the probability of that child (straight-through).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bouton.models.sockets import ListSocket, State

if TYPE_CHECKING:
    from bouton.models.context import Context
    from bouton.models.initialize import Draw
    from bouton.models.routing_tree import Routes


@dataclass(frozen=True)
class Choice:
    """Where each token goes: k places per token.

    Attributes:
        experts: (B, T, k) int64, the expert in each place.
        gates: (B, T, k) weight of each place, float32 or better.
        distribution: gives ``probabilities``: not every router needs them to choose.
    """

    experts: Tensor
    gates: Tensor
    distribution: Callable[[], Tensor]

    @property
    def probabilities(self) -> Tensor:
        """(B, T, slots) over all roots, 0 where there is none."""
        return self.distribution()


def moved(plain: Tensor, increment: Tensor) -> Tensor:
    """Share of the tokens whose largest logit is another one with the increment, both (B, T, slots)."""
    return (plain.argmax(-1) != (plain + increment).argmax(-1)).double().mean()


class Router(nn.Module):
    """Logits W x + bias of the roots (first ``slots`` rows of W) and of the nodes (the others).

    Args:
        hidden: width of the residual stream.
        slots: most experts there can be.
        top_k: places per token; 0: one for every root (dense).
        std: of the initial weights.
    """

    def __init__(self, hidden: int, slots: int, top_k: int, layer: int, std: float) -> None:
        super().__init__()
        self.slots, self.top_k, self.std = slots, top_k, std
        self.weight = nn.Parameter(torch.empty(2 * slots - 1, hidden))
        self.terms = ListSocket("router", layer, hidden_size=hidden, slots=slots)

    def initialize_parameters(self, draw: Draw) -> None:
        draw.normal(self.weight, self.std, "weight")

    def forward(
        self, x: Tensor, bias: Tensor, routes: Routes, ctx: Context, state: State | None
    ) -> tuple[Choice, State]:
        """x (B, T, hidden), bias (2 slots - 1,) -> the choice, and the state of the parts in ``terms`` by mechanism.

        Those see the logits before any of their increments, -inf in rows that lead nowhere.
        """
        with torch.autocast(x.device.type, enabled=False):  # near a tie a rounded logit would choose another expert
            x = x.to(self.weight.dtype)
            rows = self.slots if routes.depth == 0 else 2 * self.slots - 1
            logits = F.linear(x, self.weight[:rows], bias[:rows].to(x.dtype))
            plain = logits[..., : self.slots].masked_fill(~routes.is_root, -torch.inf)
            increment, after = self._increment(x, plain, ctx, state)
            roots = plain if increment is None else plain + increment
            probabilities = roots.softmax(-1)
            chosen, gates = self._choose(roots, probabilities, routes)
            experts, gates = self._descend(routes.entry[chosen], gates, logits[..., self.slots :], routes)
        return Choice(experts, gates, lambda: probabilities), after

    def _increment(self, x: Tensor, plain: Tensor, ctx: Context, state: State | None) -> tuple[Tensor | None, State]:
        """The sum of what the parts in ``terms`` add, None if there are none, and their state by mechanism."""
        total: Tensor | None = None
        after: State = {}
        for name, part in self.terms.items():
            increment, part_state = part(x, plain, ctx, None if state is None else state.get(name))
            total = increment if total is None else total + increment
            if part_state:
                after[name] = part_state
        return total, after

    def root_parameters(self) -> list[nn.Parameter]:
        """All parameters with one entry per root: when a root is merged into another one, its entries are, too.

        A part in ``terms`` names its own in a tuple ``per_root``. A split leaves them as they are: the twins share the
        root of the expert that they come from.
        """
        names = ((part, name) for _, part in self.terms.items() for name in getattr(part, "per_root", ()))
        return [self.weight, *(part.get_parameter(name) for part, name in names)]

    def _choose(self, roots: Tensor, probabilities: Tensor, routes: Routes) -> tuple[Tensor, Tensor]:
        """Rows of the chosen roots and their weights, (B, T, k) each."""
        if self.top_k == 0:
            rows = torch.tensor(routes.roots, device=roots.device)
            return rows.expand(*roots.shape[:-1], -1), probabilities[..., rows]
        top = roots.topk(self.top_k, dim=-1)
        if self.top_k == 1:  # a softmax over one is constant: the router would get no gradient
            return top.indices, probabilities.gather(-1, top.indices)
        return top.indices, top.values.softmax(-1)

    def _descend(self, pointer: Tensor, gates: Tensor, logits: Tensor, routes: Routes) -> tuple[Tensor, Tensor]:
        """From pointers to experts, node by node. logits (B, T, slots - 1): positive goes left."""
        for _ in range(routes.depth):
            inside = pointer >= self.slots
            node = (pointer - self.slots).clamp_min(0)
            z = logits.gather(-1, node)
            left = z > 0
            share = torch.sigmoid(torch.where(left, z, -z))
            gates = torch.where(inside, gates * (1 + (share - share.detach())), gates)
            child = routes.children[node, (~left).long()]
            pointer = torch.where(inside, child, pointer)
        return pointer, gates

    def flops_per_token(self, seq_len: int) -> float:
        return 2.0 * self.slots * self.weight.shape[1]
