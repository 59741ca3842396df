"""ultrametric: the experts of a mixture are the leaves of a tree, and a token finds them by a decision per level.

    log P(e | x) = sum over the nodes on the path to e of log softmax over siblings (v_node . x + prior)

The prior is what the economy (and other parts on the router) add to the experts' logits, summed up the tree. The k
experts of a token are found by a beam search that keeps ``beam`` nodes per level: O(beam * branching * log E) decisions
instead of E. It may miss a better expert below a worse node; :mod:`bouton.models.decision_tree` says when it cannot,
and the vital ``proven`` for how many tokens it did not. Weights: softmax over the k log-probabilities, with k = 1 the
probability; what top_k = 0 (all experts) and other parts on the router need is computed over all leaves.

Experts have a distance, the levels up to their common ancestor: an ultrametric. Splits go on below a leaf; a tree with
one level (``branching`` >= experts) is the flat router again, up to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bouton.errors import ConfigError
from bouton.mechanisms.base import Mechanism
from bouton.mechanisms.parameters import Params, integer
from bouton.mechanisms.registry import register
from bouton.models.decision_tree import (
    WHOLE,
    Found,
    Level,
    beam_search,
    common_depth,
    level_sizes,
    log_probabilities,
    make_levels,
)
from bouton.models.router import Choice, Router
from bouton.models.sockets import ExclusiveSocket, State

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bouton.models.body import Body
    from bouton.models.context import Context
    from bouton.models.routing_tree import Routes


@dataclass(frozen=True)
class UltrametricParams(Params):
    """Parameters of :class:`Ultrametric`."""

    branching: int = integer(2, "children of a node; 1: no tree, the flat router stays", low=1)
    beam: int | None = integer(None, "nodes kept per level, at least moe.top_k; null: moe.top_k", low=1)


class TreeRouter(Router):
    """The part in one ``routing`` socket. Its leaves are the roots of the mixture's own routing tree.

    Attributes:
        weight: (2 slots - 1 + inner nodes, hidden): the leaves' vectors and the rows that decide between the twins of a
            split, where the flat router has them, then the inner nodes level by level.
        sizes: nodes per level, the last being the leaves.
    """

    def __init__(self, socket: ExclusiveSocket, branching: int, width: int) -> None:
        super().__init__(socket.hidden_size, socket.slots, socket.top_k, socket.layer, socket.std)
        self.branching, self.width, self.layer = branching, width, socket.layer
        self.sizes = level_sizes(socket.roots, branching)
        self.weight = nn.Parameter(torch.empty(2 * socket.slots - 1 + sum(self.sizes[:-1]), socket.hidden_size))

    def forward(
        self, x: Tensor, bias: Tensor, routes: Routes, ctx: Context, state: State | None
    ) -> tuple[Choice, State]:
        """As the flat router; parts in ``terms`` see the log-probabilities, and what they add goes to the prior."""
        with torch.autocast(x.device.type, enabled=False):  # near a tie a rounded logit would choose another expert
            x, bias = x.to(self.weight.dtype), bias.to(self.weight.dtype)
            leaves = self.sizes[-1]
            levels = self.levels(bias[:leaves], routes)
            after: State = {}
            if self.terms:
                plain = self._log_probabilities(x, levels)
                increment, after = self._increment(x, plain, ctx, state)
                assert increment is not None
                levels = self.levels(bias[:leaves] + increment[..., :leaves], routes)
            if self.top_k == 0:
                chosen = torch.tensor(routes.roots, device=x.device).expand(*x.shape[:-1], -1)
                scores = self._log_probabilities(x, levels).gather(-1, chosen)
                found = Found(chosen, scores, torch.full_like(scores[..., 0], -torch.inf))
            else:
                found = beam_search(x, levels, self.branching, self.width, self.top_k)
            gates = found.scores.softmax(-1) if self.top_k > 1 else found.scores.exp()
            if ctx.vitals is not None:
                self._report(ctx, found)
            twins = slice(self.slots, 2 * self.slots - 1)
            logits = F.linear(x, self.weight[twins], bias[twins]) if routes.depth else gates
            experts, gates = self._descend(routes.entry[found.leaves], gates, logits, routes)
        return Choice(experts, gates, lambda: self._log_probabilities(x, levels).exp()), after

    def levels(self, prior: Tensor, routes: Routes) -> list[Level]:
        """The tree with the leaves' ``prior``, (leaves,) or (B, T, leaves)."""
        inner = self.weight[2 * self.slots - 1 :].split(self.sizes[:-1]) if len(self.sizes) > 1 else ()
        vectors = [*inner, self.weight[: self.sizes[-1]]]
        return make_levels(vectors, prior, routes.is_root[: self.sizes[-1]], self.branching)

    def _log_probabilities(self, x: Tensor, levels: list[Level]) -> Tensor:
        """(B, T, slots), -inf where there is no root."""
        scores = log_probabilities(x, levels, self.branching)
        return F.pad(scores, (0, self.slots - scores.shape[-1]), value=-torch.inf)

    @torch.no_grad()
    def _report(self, ctx: Context, found: Found) -> None:
        proven = (found.scores[..., -1] >= found.bound).double().mean()
        ctx.report(Ultrametric.name, "proven", proven, self.layer)
        ctx.report(Ultrametric.name, "probability", found.scores.exp().sum(-1).mean(), self.layer)
        a, b = torch.broadcast_tensors(found.leaves.unsqueeze(-1), found.leaves.unsqueeze(-2))
        levels, k = len(self.sizes), a.shape[-1]
        distances = (levels - common_depth(a, b, levels, self.branching)).double().sum((-2, -1))
        ctx.report(Ultrametric.name, "distance", distances.mean() / max(k * (k - 1), 1), self.layer)

    def flops_per_token(self, seq_len: int) -> float:
        """Of the decisions that are computed."""
        hidden = self.weight.shape[1]
        if self.top_k == 0:
            return 2.0 * hidden * sum(self.sizes)
        total, beam = 0, 1
        for size in self.sizes:
            asked = beam * self.branching
            total += size if size <= WHOLE * asked else asked
            beam = min(asked, self.width)
        return 2.0 * hidden * total


@register
class Ultrametric(Mechanism):
    """Routing by decisions down a tree, in place of the flat router."""

    name = "ultrametric"
    summary = "experts are leaves of a tree, found by a decision per level and beam search"
    source = "Morin and Bengio 2005 (hierarchical softmax); Rammal, Toulouse and Virasoro 1986 (ultrametricity)"
    sockets = ("routing",)
    Params = UltrametricParams
    refines = ("moe",)
    state = "none"
    neutral: ClassVar[Mapping[str, Any] | None] = {"branching": 1}
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "ternary": {"branching": 3},
        "narrow": {"beam": 1, "moe": {"experts": 8, "top_k": 1}},
        "dense": {"moe": {"top_k": 0}},
    }
    vital_names: ClassVar[Mapping[str, str]] = {
        "proven": "share of tokens whose experts are provably the most probable ones: beam search missed none",
        "probability": "probability that the tree gives to the experts of a token together",
        "distance": "mean distance between the experts of a token in levels of the tree; 0 with one expert per token",
    }

    def plug(self, body: Body) -> None:
        hp: UltrametricParams = self.hp
        if hp.branching == 1:
            if hp.beam is not None:
                raise ConfigError(
                    f"beam = {hp.beam} has no effect with branching = 1: without a tree nothing is searched"
                )
            return
        for socket in body.sockets("routing"):
            if hp.beam is not None and socket.top_k == 0:
                raise ConfigError(f"beam = {hp.beam} has no effect with moe.top_k = 0: every expert is taken")
            if hp.beam is not None and hp.beam < socket.top_k:
                raise ConfigError(f"beam = {hp.beam} is less than moe.top_k = {socket.top_k}: choose at least as many")
            socket.plug(self, TreeRouter(socket, hp.branching, hp.beam or socket.top_k))
