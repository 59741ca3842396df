"""The bigram model that every language model must beat: counts of token pairs, interpolated with the unigram.

    python experiments/tinystories/bigram.py data.path=<folder> [overrides ...]

prints its held-out loss on exactly the validation windows that `train.py experiment=tinystories` reports on.
"""

from __future__ import annotations

import sys

import numpy as np

import bouton
from bouton.data import build_datamodule


def main(overrides: list[str]) -> None:
    cfg = bouton.compose("experiment=tinystories", *overrides)
    data = build_datamodule(cfg.data, cfg.seed)
    data.prepare_data()
    data.setup("fit")
    vocab = data.tokenizer.vocab_size
    pairs = np.zeros((vocab, vocab))
    rows = data.rows("train")
    for first in range(0, len(rows), 256):
        batch = rows.gather(np.arange(first, min(first + 256, len(rows))))
        np.add.at(pairs, (batch["tokens"].numpy().ravel(), batch["targets"].numpy().ravel()), 1)
    unigram = (pairs.sum(0) + 1) / (pairs.sum() + vocab)
    # Witten-Bell: a context that was followed by many different tokens trusts the unigram more.
    seen, kinds = pairs.sum(1, keepdims=True), (pairs > 0).sum(1, keepdims=True)
    model = (pairs + kinds * unigram) / np.maximum(seen + kinds, 1)
    nll = tokens = size = 0.0
    for batch in data.val_dataloader():
        x, y = batch["tokens"].numpy().ravel(), batch["targets"].numpy().ravel()
        x, y = x[y >= 0], y[y >= 0]
        nll -= np.log(np.where(seen[x, 0] > 0, model[x, y], unigram[y])).sum()
        tokens += len(y)
        size += data.tokenizer.token_bytes[y].sum()
    print(
        f"bigram: {nll / tokens:.4f} nats per token, {nll / np.log(2) / size:.4f} bits per byte on {tokens:.0f} tokens"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
