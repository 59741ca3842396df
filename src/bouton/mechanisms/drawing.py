"""A :class:`~bouton.mechanisms.pictures.Picture` as a PNG."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import IO, Any

from bouton.files import write_atomically
from bouton.mechanisms.pictures import Picture

_COLUMNS = 4


def draw_picture(picture: Picture, title: str, path: Path) -> Path:
    """Write ``path``: one heat map per panel, all on one colour scale, with a bar that says which."""
    content = png(picture, title)
    write_atomically(path, lambda file: _put(file, content))
    return path


def png(picture: Picture, title: str = "") -> bytes:
    """The PNG as bytes."""
    buffer = io.BytesIO()
    figure_of(picture, title).savefig(buffer, format="png", dpi=90)
    return buffer.getvalue()


def figure_of(picture: Picture, title: str = "") -> Any:
    """The matplotlib figure of a picture."""
    import numpy as np
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    panels = picture.numpy()
    finite = panels[np.isfinite(panels)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    columns = min(_COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    wide = panels.shape[2] > 2 * panels.shape[1]
    figure = Figure(figsize=(6.5 if wide else 3.0 * columns + 0.8, 2.4 if wide else 2.9 * rows), layout="constrained")
    if title:
        figure.suptitle(title, fontsize=10)
    grid = figure.subplots(rows, columns, squeeze=False)
    image: Any = None
    for index, axes in enumerate(grid.flat):
        if index >= len(panels):
            axes.set_axis_off()
            continue
        image = axes.imshow(panels[index], vmin=low, vmax=high, cmap="viridis", aspect="auto", interpolation="nearest")
        axes.set_xlabel(picture.columns, fontsize=8)
        axes.set_ylabel(picture.rows, fontsize=8)
        axes.tick_params(labelsize=7)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        if len(panels) > 1:
            axes.set_title(f"{picture.panels} {index}", fontsize=8)
    bar = figure.colorbar(image, ax=list(grid.flat), shrink=0.9)
    bar.set_label(picture.unit, fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure


def _put(file: IO[bytes], content: bytes) -> None:
    file.write(content)
