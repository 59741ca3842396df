"""Interpolated Kneser-Ney n-grams, from sorted keys: what counting alone predicts.

    p_n(y | c) = max(N(c y) - D, 0) / N(c) + D types(c) / N(c) p_{n-1}(y | c without its first token)

N of the highest order counts occurrences, N of the others how many different tokens come before; D = n1 / (n1 + 2 n2)
of each order; p_0 is uniform. A context that was never seen leaves it to the shorter one.

Source: Kneser and Ney 1995; Chen and Goodman 1999.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bouton.errors import EvaluationError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Order:
    """Counts of one order: ascending keys of n-grams, and of their contexts with totals and numbers of types."""

    keys: Ints
    counts: Ints
    contexts: Ints
    totals: Ints
    types: Ints
    discount: float


class KneserNey:
    """Counts of the orders 1 to ``order`` of a text.

    Args:
        tokens: (n,) ids of all documents, each with its leading separator.
        documents: (d,) where they begin; contexts do not reach over that.
        order: longest n-gram.
        vocab_size: number of ids.

    Raises:
        EvaluationError: so many tokens and so long n-grams that their keys do not fit.
    """

    def __init__(self, tokens: Ints, documents: Ints, order: int, vocab_size: int) -> None:
        self.order, self.base, self.vocab_size = order, vocab_size + 1, vocab_size
        if self.base**order >= 2**63:
            raise EvaluationError(f"order = {order} is not valid: with {vocab_size} tokens their n-grams have no keys")
        keys, counts = np.unique(self.keys(tokens, documents), return_counts=True)
        orders = [self._order(keys, counts)]
        for n in range(order - 1, 0, -1):
            keys, counts = np.unique(keys % self.base**n, return_counts=True)
            orders.insert(0, self._order(keys, counts))
        self._orders = orders

    def keys(self, tokens: Ints, documents: Ints) -> Ints:
        """(n - 1,) the key of the longest n-gram that ends with each token but the first."""
        starts = np.zeros(len(tokens), np.int64)
        starts[documents[documents < len(tokens)]] = 1
        age = np.arange(len(tokens)) - np.maximum.accumulate(np.where(starts, np.arange(len(tokens)), 0))
        key = tokens[1:].astype(np.int64)
        for k in range(1, self.order):
            back = np.full(len(key), self.vocab_size)  # stands for what is before the document
            back[k - 1 :] = tokens[: len(key) - k + 1]
            key += np.where(age[:-1] >= k - 1, back, self.vocab_size) * self.base**k
        return key

    def _order(self, keys: Ints, counts: Ints) -> _Order:
        contexts, first = np.unique(keys // self.base, return_index=True)
        once, twice = int((counts == 1).sum()), int((counts == 2).sum())
        discount = once / (once + 2 * twice) if once else 0.5
        types = np.diff(np.append(first, len(keys)))
        return _Order(keys, counts, contexts, np.add.reduceat(counts, first), types, discount)

    def probabilities(self, keys: Ints) -> list[Floats]:
        """Of the target in each key (n,), by order: the unigram first."""
        p = np.full(len(keys), 1.0 / self.vocab_size)
        found = []
        for n, order in enumerate(self._orders, start=1):
            key = keys % self.base**n
            count = _look_up(order.keys, order.counts, key)
            total = _look_up(order.contexts, order.totals, key // self.base)
            types = _look_up(order.contexts, order.types, key // self.base)
            seen = total > 0
            share = np.maximum(count - order.discount, 0.0) + order.discount * types * p
            p = np.where(seen, share / np.maximum(total, 1), p)
            found.append(p)
        return found


def _look_up(keys: Ints, values: Ints, wanted: Ints) -> Ints:
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    found: Ints = np.where(keys[at] == wanted, values[at], 0)
    return found
