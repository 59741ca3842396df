"""Choosing among the leaves of a tree by one decision per level, and how far apart two leaves are.

A node at level d (the root at 0, the leaves at D) has up to ``branching`` children: those of node i are the nodes
i * branching and following of the next level. A node's vector v scores it against its siblings:

    log P(leaf) = sum over the nodes on its path of  log softmax over siblings (v . x + prior)
    prior of a leaf: given;  prior of a node: log sum exp over the living leaves below it

So with v = 0 the tree is the flat softmax of the leaves' priors whatever its shape, what raises a leaf's prior raises
its share of every decision on its path, and a dead leaf (prior -inf) has probability 0 and takes no mass with it.

**Beam search** of width w keeps the w most probable nodes of every level: at most w * branching decisions per level.
A leaf is never more probable than a node above it, but the best leaf need not be below the best node: of .6 = .3 + .3
and .4 = .39 + .01 a beam of width 1 takes a leaf of .3. Hence the k most probable leaves are certain to be found

  * if w is at least the number of living nodes on every level but the last: nothing is cut off then;
  * for a given token, if the k-th leaf found is at least as probable as every node that was cut off (``bound``);
  * for a given token, if its k-th best leaf has P > 1 / (w + 1): the nodes above it have no less, and as the nodes of
    a level exclude each other, at most w of them can have more than that.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bouton.models.routing_tree import Tree

# A level is computed whole, by one matrix product, where it has at most this many times the decisions of the beam:
# fetching single vectors for every token was slower than that (CPU, width 256, forward and backward).
WHOLE = 32


@dataclass(frozen=True)
class Level:
    """The nodes of one level.

    Attributes:
        vectors: (n, hidden).
        prior: (n,) or (B, T, n), any finite value where a node is dead.
        alive: (n,) bool: nodes with a living leaf below.
    """

    vectors: Tensor
    prior: Tensor
    alive: Tensor


@dataclass(frozen=True)
class Found:
    """What beam search found.

    Attributes:
        leaves: (B, T, k) int64, the most probable first.
        scores: (B, T, k) their log-probabilities.
        bound: (B, T) the largest log-probability of a node that was cut off; -inf if none was.
    """

    leaves: Tensor
    scores: Tensor
    bound: Tensor


def level_sizes(leaves: int, branching: int) -> tuple[int, ...]:
    """Number of nodes of the levels 1 .. D, the last being the leaves.

    Args:
        leaves: at least 1.
        branching: at least 2.
    """
    sizes = [leaves]
    while sizes[0] > branching:
        sizes.insert(0, -(-sizes[0] // branching))
    return tuple(sizes)


def make_levels(vectors: Sequence[Tensor], prior: Tensor, alive: Tensor, branching: int) -> list[Level]:
    """The levels 1 .. D from their vectors and the leaves' ``prior`` (n,) or (B, T, n) and ``alive`` (n,)."""
    prior = prior.masked_fill(~alive, 0)
    levels = [Level(vectors[-1], prior, alive)]
    for level in reversed(vectors[:-1]):
        prior, alive = _above(prior, alive, branching)
        levels.insert(0, Level(level, prior, alive))
    return levels


def _above(prior: Tensor, alive: Tensor, branching: int) -> tuple[Tensor, Tensor]:
    """Log sum exp over the living children of every node, 0 for nodes without any."""
    values, living = _siblings(prior, branching, 0.0), _siblings(alive, branching, False)
    values = values.masked_fill(~living, -torch.inf)
    some = living.any(-1)
    peak = values.detach().amax(-1).masked_fill(~some, 0)
    total = (values - peak.unsqueeze(-1)).exp().sum(-1)
    return total.masked_fill(~some, 1).log() + peak, some


def log_probabilities(x: Tensor, levels: Sequence[Level], branching: int) -> Tensor:
    """x (B, T, hidden) -> (B, T, n), log P of every leaf, -inf for dead ones."""
    score = x.new_zeros(*x.shape[:-1], 1)
    for level in levels:
        logits = _siblings(F.linear(x, level.vectors) + level.prior, branching, 0.0)
        alive = _siblings(level.alive, branching, False)
        below = (score.unsqueeze(-1) + _decide(logits, alive)).flatten(-2)
        score = below[..., : level.vectors.shape[0]].masked_fill(~level.alive, -torch.inf)
    return score


def beam_search(x: Tensor, levels: Sequence[Level], branching: int, width: int, k: int) -> Found:
    """The k most probable leaves as far as a beam of ``width`` >= k nodes sees them; no fewer than k must be alive."""
    score = x.new_zeros(*x.shape[:-1], 1)
    beam = torch.zeros_like(score, dtype=torch.int64)
    bound = torch.full_like(score[..., 0], -torch.inf).detach()
    child = torch.arange(branching, device=x.device)
    for level in levels:
        last = level.vectors.shape[0] - 1
        nodes = beam.unsqueeze(-1) * branching + child  # (B, T, beam, branching)
        exists = nodes <= last
        nodes = nodes.clamp_max(last)
        alive = level.alive[nodes] & exists
        decided = _decide(_logits(x, level, nodes.flatten(-2)).view(nodes.shape), alive)
        below = (score.unsqueeze(-1) + decided).masked_fill(~alive, -torch.inf).flatten(-2)
        score, beam = below, nodes.flatten(-2)
        if below.shape[-1] > width:
            order = below.detach().topk(width + 1, dim=-1)
            bound = torch.maximum(bound, order.values[..., -1])
            kept = order.indices[..., :width]
            score, beam = score.gather(-1, kept), beam.gather(-1, kept)
    top = score.topk(k, dim=-1)
    if k < score.shape[-1]:  # of the leaves found the others are cut off, too
        bound = torch.maximum(bound, score.detach().topk(k + 1, dim=-1).values[..., -1])
    return Found(beam.gather(-1, top.indices), top.values, bound)


def _logits(x: Tensor, level: Level, nodes: Tensor) -> Tensor:
    """v . x + prior of the given nodes (B, T, m) of a level."""
    if level.vectors.shape[0] <= WHOLE * nodes.shape[-1]:
        return (F.linear(x, level.vectors) + level.prior).gather(-1, nodes)
    prior = level.prior.expand(*nodes.shape[:-1], -1).gather(-1, nodes)
    return torch.matmul(level.vectors[nodes], x.unsqueeze(-1)).squeeze(-1) + prior


def _decide(logits: Tensor, alive: Tensor) -> Tensor:
    """Log softmax over living siblings (the last dimension), -inf for dead ones."""
    some = alive.any(-1, keepdim=True)
    masked = logits.masked_fill(~alive & some, -torch.inf)  # a softmax over nothing would be nan, its gradient too
    return torch.log_softmax(masked, -1)


def _siblings(values: Tensor, branching: int, fill: float | bool) -> Tensor:
    """(..., n) -> (..., parents, branching), filled up where the last node has fewer children."""
    missing = -values.shape[-1] % branching
    if missing:
        values = torch.cat((values, values.new_full((*values.shape[:-1], missing), fill)), dim=-1)
    return values.reshape(*values.shape[:-1], -1, branching)


def common_depth(a: Tensor, b: Tensor, depth: int, branching: int) -> Tensor:
    """Level of the lowest common ancestor of leaves ``a`` and ``b`` (int64, any equal shape): 0 at the root."""
    shared = torch.zeros_like(a)
    for level in range(depth):
        shared += a // branching**level == b // branching**level
    return shared


def expert_distances(tree: Tree, leaves: int, branching: int) -> Tensor:
    """(slots, slots) the ultrametric distance of experts: levels from the deepest one up to their common ancestor.

    Experts that were split from one leaf go on below it. d(a, a) = 0 and d(a, c) <= max(d(a, b), d(b, c)).

    Args:
        tree: the routing tree of a block, whose roots are the leaves.

    Returns:
        float64, NaN in rows and columns of slots without an expert.
    """
    levels = len(level_sizes(leaves, branching))
    paths: dict[int, list[int]] = {}

    def descend(pointer: int, path: list[int]) -> None:
        if pointer < tree.slots:
            paths[pointer] = path
            return
        for turn, below in enumerate(tree.children[pointer - tree.slots]):
            descend(below, [*path, turn])

    for row in tree.roots:
        descend(tree.entry[row], [row // branching**level for level in reversed(range(levels))])
    height = levels + tree.depth()
    distances = torch.full((tree.slots, tree.slots), torch.nan, dtype=torch.float64)
    for a, b in itertools.product(paths, repeat=2):
        shared = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(paths[a], paths[b], strict=False))
        distances[a, b] = 0 if a == b else height - sum(1 for _ in shared)
    return distances
