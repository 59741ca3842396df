"""Kneser-Ney by sorted keys against its formula by dictionaries, and that it is a distribution."""

from collections import Counter

import numpy as np
import pytest

from bouton.errors import EvaluationError
from bouton.evaluation.kneser_ney import KneserNey

VOCAB = 6
OUTSIDE = VOCAB


def text(seed: int, size: int = 300) -> tuple[np.ndarray, np.ndarray]:
    g = np.random.default_rng(seed)
    tokens = g.choice(VOCAB, size, p=[0.1, 0.4, 0.2, 0.15, 0.1, 0.05])
    tokens[0] = 0
    return tokens.astype(np.int64), np.flatnonzero(tokens == 0)


def ngrams(tokens: np.ndarray, n: int) -> list[tuple[int, ...]]:
    """Of each target, what is before it in its document and it, the oldest first; 0 begins a document."""
    found = []
    for i in range(1, len(tokens)):
        gram = [int(tokens[i])]
        for k in range(1, n):
            inside = i - k >= 0 and 0 not in tokens[i - k + 1 : i]
            gram.insert(0, int(tokens[i - k]) if inside else OUTSIDE)
        found.append(tuple(gram))
    return found


def by_formula(counted: list[tuple[int, ...]], gram: tuple[int, ...], order: int) -> float:
    kinds = {order: Counter(counted)}
    for n in range(order - 1, 0, -1):
        kinds[n] = Counter(key[1:] for key in kinds[n + 1])
    p = 1.0 / VOCAB
    for n in range(1, order + 1):
        counts, key = kinds[n], gram[order - n :]
        once, twice = (sum(c == m for c in counts.values()) for m in (1, 2))
        discount = once / (once + 2 * twice) if once else 0.5
        same = {k: c for k, c in counts.items() if k[:-1] == key[:-1]}
        if total := sum(same.values()):
            p = (max(counts.get(key, 0) - discount, 0) + discount * len(same) * p) / total
    return p


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_equals_the_formula(order: int) -> None:
    (tokens, documents), (held_out, others) = text(0), text(1, 60)
    counts = KneserNey(tokens, documents, order, VOCAB)
    found = counts.probabilities(counts.keys(held_out, others))[-1]
    counted = ngrams(tokens, order)
    for p, gram in zip(found, ngrams(held_out, order), strict=True):
        assert p == pytest.approx(by_formula(counted, gram, order), rel=1e-12)


def test_probabilities_sum_to_one() -> None:
    tokens, documents = text(0)
    counts = KneserNey(tokens, documents, 3, VOCAB)
    contexts = np.unique(counts.keys(*text(2))) // counts.base
    for context in contexts[:40]:
        keys = context * counts.base + np.arange(VOCAB)
        for p in counts.probabilities(keys):
            assert p.sum() == pytest.approx(1.0)


def test_keys_that_do_not_fit_are_refused() -> None:
    with pytest.raises(EvaluationError, match="order = 5 is not valid"):
        KneserNey(*text(0), 5, 50_000)
