"""Pictures of what was learned: weights of the classes as images, which class was taken for which, curves of noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from bouton.domains.base import Row
from bouton.domains.codes import Cells, Patches
from bouton.domains.recognizer import Labels, Recognizer

MOST_LETTERS = 20  # of a class, in a picture


def weight_images(recognizer: Recognizer, coder: Cells | Patches, classes: Sequence[str]) -> Figure:
    """For every class the weights of the places where training has made nodes active, red for and blue against.

    The colour of a place is the mean over its nodes, less the mean over the classes, which changes no answer.
    """
    weights = recognizer.weights()
    places = tuple(n - isinstance(coder, Patches) for n in coder.shape)
    images = weights.reshape(*places, -1, len(classes))
    used = (images != 0).any(axis=3, keepdims=True)
    mean = (images * used).sum(axis=2) / np.maximum(used.sum(axis=2), 1)
    mean -= mean.mean(axis=2, keepdims=True)
    most = float(np.abs(mean).max()) or 1.0
    columns = min(5, len(classes))
    rows = -(-len(classes) // columns)
    figure = Figure(figsize=(1.6 * columns + 0.8, 1.8 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for one in axes:
        one.set_axis_off()
    for c, one in zip(range(len(classes)), axes, strict=False):
        shown = one.imshow(mean[:, :, c], cmap="RdBu_r", vmin=-most, vmax=most)
        one.set_title(classes[c])
    figure.colorbar(shown, ax=list(axes), label="mean weight of a place", shrink=0.8)
    return figure


def confusion(labels: Labels, answers: Labels, classes: Sequence[str]) -> Figure:
    """Rows: the class; columns: the answer; numbers: examples, coloured by their share of the row."""
    counts: NDArray[np.int64] = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(counts, (labels, answers), 1)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    half = MOST_LETTERS // 2
    names = [name if len(name) <= MOST_LETTERS else f"{name[:half]}…{name[-half:]}" for name in classes]
    size = 1.6 + 0.42 * len(classes) + 0.07 * max(map(len, names))
    figure = Figure(figsize=(size + 0.6, size), layout="constrained")
    axes = figure.subplots()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (i, j), n in np.ndenumerate(counts):
        if n:
            colour = "white" if share[i, j] > 0.5 else "black"
            axes.text(j, i, f"{n}", ha="center", va="center", fontsize=7, color=colour)
    slanted: dict[str, Any] = (
        {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if max(map(len, names)) > 2 else {}
    )
    axes.set_xticks(range(len(classes)), names, **slanted)
    axes.set_yticks(range(len(classes)), names)
    right = float((labels == answers).mean())
    axes.set(xlabel="answer", ylabel="class", title=f"{right:.1%} of {len(labels):,} right")
    return figure


def by_noise(rows: Sequence[Row], columns: Mapping[str, float]) -> Figure:
    """Share recognised by each method over the noise.

    Args:
        columns: column of the rows -> noise.
    """
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        graph = row["method"] == rows[0]["method"]
        values = [float(row[name]) for name in columns]
        axes.plot(list(columns.values()), values, "o-", label=row["method"], lw=2.4 if graph else 1.2, ms=4)
    axes.set(xlabel="noise: standard deviation / amplitude", ylabel="share right", ylim=(0, 1.02))
    axes.legend(frameon=False, fontsize=8)
    return figure
