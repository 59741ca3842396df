"""How long the graph takes to look at MNIST once: encoding the training images, and learning them.

    python benchmarks/mnist_epoch.py <folder with MNIST> --threads 2

Encoding is NumPy on one thread; learning is the engine on ``--threads``. Prints medians with quartiles, in seconds; the
first repetition warms up and does not count.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from bouton.domains.images.idx import read_idx
from bouton.domains.images.mnist import CLASSES, Encoder
from bouton.domains.recognizer import Examples, Learning, Recognizer

PARTS = ("levels", "nodes", "learn", "all")


def main() -> None:
    """Measure both codes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="with the four files of MNIST")
    parser.add_argument("--threads", type=int, default=2, help="of the engine")
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    images = read_idx(options.folder, "train-images-idx3-ubyte", 3)
    labels = read_idx(options.folder, "train-labels-idx1-ubyte", 1).astype(np.int64)
    for code in ("cells", "patches"):
        encoder = Encoder(images.shape[1:], code)
        recognizer = Recognizer(encoder.coder.names(), CLASSES, threads=options.threads)
        rows = []
        for seed in range(options.repeats + 1):
            begin = time.perf_counter()
            levels = encoder.levels(images)
            seen = time.perf_counter()
            active = encoder.coder(levels)
            coded = time.perf_counter()
            recognizer.learn(Examples(active, labels), Learning(epochs=1), np.random.default_rng(seed))
            end = time.perf_counter()
            rows.append((seen - begin, coded - seen, end - coded, end - begin))
        quartiles = np.percentile(np.array(rows[1:]), (25, 50, 75), axis=0)
        print(
            f"{code}: {len(images):,} images, {int((active != 2**32 - 1).sum()) / len(images):.0f} active nodes of each"
        )
        for name, (low, middle, high) in zip(PARTS, quartiles.T, strict=True):
            print(f"  {name:7} {middle:.3f} ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
