"""How experts of a mixture (:mod:`bouton.mechanisms.moe`) split and merge, between two optimizer steps.

*Split*: the clone is an exact copy with its optimizer state. In the routing tree a node takes the expert's place and
sends each token to exactly one of the two, by a row drawn at random: the pair keeps one row of the router and one place
among the k, so the function is unchanged; the twins then diverge because they see different tokens. Energy, fatigue and
use are halved. *Merge*: the average of two experts, weighted by their use, after matching their hidden units. Neither
changes the bias of a root or node that stays: what their new experts would change fades in with ``tau_fatigue``.

Everything follows from weights, organism state and a generator keyed by (seed, step, block): all ranks do the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.optim import Optimizer

from bouton.mechanisms.lineage import Lineage
from bouton.models.expert_rows import blend_row, copy_expert, merge_expert, nearest, reset_row
from bouton.models.initialize import Draw
from bouton.models.routing_tree import Tree

if TYPE_CHECKING:
    from bouton.mechanisms.moe import Moe

Event = Callable[[Lineage], None]


def step(moe: Moe, index: int, optimizer: Optimizer | None) -> list[Event]:
    """At most one merge, then at most one split in a block. Returns what happened, to be told to the lineage."""
    happened: list[Event] = []
    if (poor := _bankrupt(moe, index)) is not None:
        others = [expert for expert in moe.tree(index).alive if expert != poor]
        happened.append(merge(moe, index, poor, nearest(moe.parts[index].experts, poor, others), optimizer))
    if (rich := _wealthy(moe, index)) is not None:
        happened.append(split(moe, index, rich, optimizer))
    return happened


def _bankrupt(moe: Moe, index: int) -> int | None:
    """The poorest of the experts that may be merged; enough must remain, as experts and as choices of the router."""
    tree, fewest = moe.tree(index), max(2, moe.hp.top_k)
    want, worth = moe.want[index].tolist(), moe.worth(index).tolist()
    due = [e for e in tree.alive if want[e] >= moe.hp.patience]
    if len(tree.roots) <= fewest:
        due = [e for e in due if e not in tree.entry]
    return min(due, key=lambda e: worth[e]) if due and len(tree.alive) > fewest else None


def _wealthy(moe: Moe, index: int) -> int | None:
    """The richest of the experts that may split."""
    alive, wealth, worth = moe.tree(index).alive, moe.wealth[index].tolist(), moe.worth(index).tolist()
    due = [e for e in alive if wealth[e] >= moe.hp.patience]
    return max(due, key=lambda e: worth[e]) if due and len(alive) < moe.hp.max_experts else None


def split(moe: Moe, index: int, expert: int, optimizer: Optimizer | None) -> Event:
    """Split ``expert`` of a block into a free slot."""
    part, tree = moe.parts[index], moe.tree(index)
    slot = next(s for s in range(tree.slots) if s not in tree.alive)
    before = moe.bias(index)
    copy_expert(part.experts, expert, slot, optimizer)
    when = int(moe.steps)
    draw = Draw(int(moe.seed), f"moe.split/{when}/{index}/{slot}")
    for trait in part.traits():
        trait.inherit(expert, slot, draw, optimizer)
    node = tree.slots + tree.split(expert, slot)
    row = torch.empty_like(part.router.weight[node])
    draw.normal(row, part.router.std, "row")
    reset_row(part.router.weight, node, row, optimizer)
    for state in (moe.expert_energy, moe.expert_fatigue, moe.expert_use):
        state[index, expert] /= 2
        state[index, slot] = state[index, expert]
    for counter in (moe.wealth, moe.want):
        counter[index, [expert, slot]] = 0
    _plant(moe, index, tree, before)
    identity, parent = moe.hp.experts + int(moe.splits[index]), int(moe.individuals[index, expert, 0])
    moe.individuals[index, slot] = torch.tensor((identity, parent, when))
    moe.splits[index] += 1
    return lambda lineage: lineage.birth(index, identity, parent, when, slot)


def merge(moe: Moe, index: int, expert: int, into: int, optimizer: Optimizer | None) -> Event:
    """Merge ``expert`` of a block into another one and free its slot."""
    part, tree = moe.parts[index], moe.tree(index)
    before = moe.bias(index)
    # Fatigue is the use of the last steps, smoothed.
    use = moe.expert_fatigue[index].tolist()
    share = _share(use[expert], use[into])
    merge_expert(part.experts, expert, into, share, optimizer)
    for trait in part.traits():
        trait.absorb(expert, into, share, optimizer)
    if (row := tree.remove(expert)) is not None:  # a whole root: its tokens are to find the expert that it is part of
        root = tree.root_of(into)
        whole = sum(use[leaf] for leaf in tree.leaves(tree.entry[root]))
        for parameter in part.router.root_parameters():
            blend_row(parameter, row, root, _share(use[expert], whole), optimizer)
    for state in (moe.expert_energy, moe.expert_fatigue, moe.expert_use):
        state[index, into] += state[index, expert]
        state[index, expert] = 0
    moe.wealth[index, expert] = 0
    moe.want[index, [expert, into]] = 0
    _plant(moe, index, tree, before)
    identity, survivor, when = (int(n) for n in (*moe.individuals[index, [expert, into], 0], moe.steps))
    moe.individuals[index, expert] = -1
    moe.merges[index] += 1
    return lambda lineage: lineage.death(index, identity, survivor, when)


def _plant(moe: Moe, index: int, tree: Tree, before: Tensor) -> None:
    """The new tree, with offsets that leave every root and node that stays with the bias that it had ``before``."""
    stays = moe.routes(index).rows
    moe.plant(index, tree)
    stays = stays & moe.routes(index).rows
    after = moe.bias(index)
    moe.offset[index] = torch.where(stays, moe.offset[index] + before - after, 0)


def _share(a: float, b: float) -> float:
    return a / (a + b) if a + b > 0 else 0.5
