"""Trees of decisions: against paths walked one by one, when beam search is exact and when not, and distances."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from bouton.models import decision_tree
from bouton.models.decision_tree import (
    Level,
    beam_search,
    common_depth,
    expert_distances,
    level_sizes,
    log_probabilities,
    make_levels,
)
from bouton.models.routing_tree import Tree

HIDDEN = 5
SHAPES = [(8, 2), (6, 2), (11, 3), (7, 7), (1, 2), (5, 4)]


def tree(
    leaves: int, branching: int, dead: tuple[int, ...] = (), tokens: int = 40
) -> tuple[Tensor, Tensor, list[Level]]:
    generator = torch.Generator().manual_seed(leaves)
    x = torch.randn(2, tokens, HIDDEN, generator=generator, dtype=torch.float64)
    vectors = [
        torch.randn(n, HIDDEN, generator=generator, dtype=torch.float64).requires_grad_()
        for n in level_sizes(leaves, branching)
    ]
    prior = torch.randn(leaves, generator=generator, dtype=torch.float64).requires_grad_()
    alive = torch.tensor([leaf not in dead for leaf in range(leaves)])
    return x, prior, make_levels(vectors, prior, alive, branching)


def walk(x: Tensor, levels: list[Level], prior: Tensor, branching: int, leaf: int) -> float:
    """Log-probability of a leaf for one token, from its path alone."""
    sizes, total = level_sizes(len(prior), branching), 0.0

    def mass(level: int, node: int) -> float:
        span = branching ** (len(sizes) - 1 - level)
        below = [i for i in range(node * span, min((node + 1) * span, len(prior))) if levels[-1].alive[i]]
        return sum(math.exp(prior[i]) for i in below)

    for level in range(len(sizes)):
        node = leaf // branching ** (len(sizes) - 1 - level)
        first = node // branching * branching
        weights = {
            i: mass(level, i) * math.exp(levels[level].vectors[i] @ x)
            for i in range(first, min(first + branching, sizes[level]))
        }
        if weights[node] == 0:
            return -math.inf
        total += math.log(weights[node] / sum(weights.values()))
    return total


def test_sizes_of_levels() -> None:
    assert level_sizes(8, 2) == (2, 4, 8)
    assert level_sizes(11, 3) == (2, 4, 11)
    assert level_sizes(9, 3) == (3, 9)
    assert level_sizes(2, 2) == (2,) and level_sizes(1, 2) == (1,)


@torch.no_grad()
@pytest.mark.parametrize(("leaves", "branching"), SHAPES)
@pytest.mark.parametrize("dead", [(), (0,), (2, 3, 4)])
def test_probabilities_are_products_along_the_paths(leaves: int, branching: int, dead: tuple[int, ...]) -> None:
    if leaves == 1 and dead:
        return
    x, prior, levels = tree(leaves, branching, dead, tokens=3)
    scores = log_probabilities(x, levels, branching)
    for b, t, leaf in itertools.product(range(2), range(3), range(leaves)):
        assert scores[b, t, leaf].item() == pytest.approx(walk(x[b, t], levels, prior, branching, leaf), abs=1e-12)
    torch.testing.assert_close(scores.exp().sum(-1), torch.ones(2, 3, dtype=torch.float64))


@torch.no_grad()
def test_without_vectors_it_is_the_flat_softmax_of_the_priors() -> None:
    generator = torch.Generator().manual_seed(0)
    prior = torch.randn(2, 4, 11, generator=generator, dtype=torch.float64) * 100  # of each token; exp would overflow
    vectors = [torch.zeros(n, HIDDEN, dtype=torch.float64) for n in level_sizes(11, 3)]
    alive = torch.arange(11) != 4
    levels = make_levels(vectors, prior, alive, 3)
    scores = log_probabilities(torch.zeros(2, 4, HIDDEN, dtype=torch.float64), levels, 3)
    torch.testing.assert_close(scores, prior.masked_fill(~alive, -math.inf).log_softmax(-1), rtol=0, atol=1e-11)


@pytest.mark.parametrize(("leaves", "branching"), SHAPES)
@pytest.mark.parametrize("whole", [0, 8])
def test_a_wide_beam_is_exhaustive_search(
    leaves: int, branching: int, whole: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decision_tree, "WHOLE", whole)  # 0: vectors are fetched for each token, on every level
    k = min(2, leaves)
    dead = (1, 4) if leaves > 5 else ()
    x, prior, levels = tree(leaves, branching, dead)
    width = max([k, *level_sizes(leaves, branching)[:-1]])
    found = beam_search(x, levels, branching, width, k)
    top = log_probabilities(x, levels, branching).topk(k, dim=-1)
    assert torch.equal(found.leaves, top.indices)
    torch.testing.assert_close(found.scores, top.values, rtol=0, atol=1e-12)
    assert bool((found.scores[..., -1] >= found.bound).all())
    inputs = [prior, *(level.vectors for level in levels)]
    weights = torch.randn(found.scores.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours = torch.autograd.grad((found.scores * weights).sum(), inputs, retain_graph=True)
    theirs = torch.autograd.grad((top.values * weights).sum(), inputs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)
        assert leaves == 1 or b.abs().max() > 1e-3


def from_probabilities(upper: list[float], lower: list[float]) -> tuple[Tensor, list[Level]]:
    """A tree of two levels with given probabilities of the decisions, for a token x = 1."""
    vectors = [torch.tensor(p, dtype=torch.float64).log().unsqueeze(1) for p in (upper, lower)]
    alive = torch.ones(len(lower), dtype=torch.bool)
    levels = make_levels(vectors, torch.zeros(len(lower), dtype=torch.float64), alive, 2)
    return torch.ones(1, 1, 1, dtype=torch.float64), levels


def test_a_narrow_beam_may_miss_the_best_leaf_and_says_so() -> None:
    x, levels = from_probabilities([0.6, 0.4], [0.5, 0.5, 0.975, 0.025])
    narrow, wide = (beam_search(x, levels, 2, width, 1) for width in (1, 2))
    assert narrow.leaves.item() in (0, 1) and narrow.scores.exp().item() == pytest.approx(0.3)
    assert narrow.bound.exp().item() == pytest.approx(0.4) and narrow.bound > narrow.scores
    assert wide.leaves.item() == 2 and wide.scores.exp().item() == pytest.approx(0.39)
    assert wide.bound.exp().item() == pytest.approx(0.3)  # the next best leaf


@torch.no_grad()
@pytest.mark.parametrize(("width", "k"), [(1, 1), (2, 1), (2, 2), (3, 2)])
def test_what_is_proven_is_exact(width: int, k: int) -> None:
    x, _, levels = tree(27, 3, dead=(5, 6, 7, 8), tokens=400)
    found = beam_search(x, levels, 3, width, k)
    top = log_probabilities(x, levels, 3).topk(k, dim=-1)
    exact = (found.leaves == top.indices).all(-1)
    proven = found.scores[..., -1] >= found.bound
    assert bool(exact[proven].all())
    likely = top.values[..., -1].exp() > 1 / (width + 1)
    assert bool(exact[likely].all())
    assert 0.1 < proven.double().mean() < 1 and not exact.all() and (k > 1 or likely.any())


@torch.no_grad()
def test_beam_search_against_a_list_of_prefixes() -> None:
    x, _, levels = tree(11, 3, dead=(0, 9), tokens=60)
    found = beam_search(x, levels, 3, 2, 2)
    for b, t in itertools.product(range(2), range(60)):
        beam, bound = [(0.0, 0)], -math.inf
        for level in levels:
            candidates = []
            for score, node in beam:
                children = [c for c in range(3 * node, min(3 * node + 3, len(level.alive))) if level.alive[c]]
                logits = torch.tensor([level.vectors[c] @ x[b, t] + level.prior[c] for c in children]).double()
                candidates += zip((score + logits.log_softmax(0)).tolist(), children, strict=True)
            candidates.sort(reverse=True)
            bound = max([bound, *(score for score, _ in candidates[2:])])
            beam = candidates[:2]
        assert found.leaves[b, t].tolist() == [node for _, node in beam]
        assert found.scores[b, t].tolist() == pytest.approx([score for score, _ in beam], abs=1e-6)
        assert found.bound[b, t].item() == pytest.approx(bound, abs=1e-6)


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("width", [2, 3, 9])
def test_only_living_leaves_are_found_and_gradients_stay_finite(width: int) -> None:
    x, prior, levels = tree(16, 2, dead=tuple(range(2, 15)))
    found = beam_search(x, levels, 2, width, 3 if width > 2 else 2)
    assert set(found.leaves.flatten().tolist()) <= {0, 1, 15} and bool(found.scores.isfinite().all())
    assert all(len(set(leaves)) == len(leaves) for leaves in found.leaves.flatten(0, 1).tolist())
    inputs = [prior, *(level.vectors for level in levels)]
    for loss in (found.scores.sum(), log_probabilities(x, levels, 2)[..., [0, 1, 15]].sum()):
        with torch.autograd.detect_anomaly(check_nan=True):  # also of intermediate ones: Lightning offers that check
            grads = torch.autograd.grad(loss, inputs, retain_graph=True)
        assert all(bool(g.isfinite().all()) for g in grads)


def test_depth_of_the_common_ancestor() -> None:
    a, b = torch.tensor([0, 0, 0, 0, 5]), torch.tensor([0, 1, 2, 4, 4])
    assert common_depth(a, b, 3, 2).tolist() == [3, 2, 1, 0, 2]
    assert common_depth(a, b, 2, 3).tolist() == [2, 1, 1, 0, 1]


def test_distances_of_experts_are_an_ultrametric_that_splits_refine() -> None:
    made = Tree([0, 1, 2, 3, 4, -1, -1, -1], [[-1, -1] for _ in range(7)])
    before = expert_distances(made, 5, 2)
    assert before[0, :5].tolist() == [0, 1, 2, 2, 3] and before[5:].isnan().all()
    made.split(1, 5)
    made.split(5, 6)
    after = expert_distances(made, 5, 2)
    assert after[1, [5, 6]].tolist() == [2, 2] and after[5, 6] == 1  # twins, and twins of a twin
    assert torch.equal(after[:5, :5], torch.where(before[:5, :5] > 0, before[:5, :5] + 2, 0))
    alive = made.alive
    assert torch.equal(after[alive][:, alive], after[alive][:, alive].T)
    for a, b, c in itertools.product(alive, repeat=3):
        assert after[a, c] <= max(after[a, b], after[b, c])
