"""Moving pictures as grids of levels, in two ways: what is where and when, or what moves.

What moves is told by elementary motion detectors (B. Hassenstein and W. Reichardt 1956, Z. Naturforsch. 11b:513): each
multiplies what is unusual at a point by what is unusual at a neighbour a little later; unusual is the difference to the
mean of all frames, to which a point has adapted. All detectors of one displacement and delay are added up over the
picture, so that it does not matter where something moves, nor how strongly it differs from the background.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from bouton.domains.codes import Cells, Levels, cut, shrink

Frames = NDArray[np.float32]

SIDE, MOMENTS = 8, 4  # cells of a side and moments of a `frames` grid
BRIGHT = (-0.5, 0.5, 1.5)  # cuts between its levels [standard deviations from the mean of the frames]
REACH, DELAYS = 3, (1, 2, 3)  # pixels to each side and frames, of the detectors
BLUR = 1.0  # of the frames before [pixels, standard deviation]
STRENGTH = (-1.5, -0.5, 0.5, 1.5, 2.5)  # cuts between their levels [standard deviations from the mean of a delay]
CODES = ("motion", "frames")


def coder(code: str) -> Cells:
    """The coder for the grids of :func:`levels`."""
    if code == "frames":
        return Cells((MOMENTS, SIDE, SIDE), len(BRIGHT) + 1, "trc")
    return Cells((len(DELAYS), 2 * REACH + 1, 2 * REACH + 1), len(STRENGTH) + 1, "dyx")


def levels(frames: Frames, code: str) -> Levels:
    """(frames, height, width) -> (moments, 8, 8) of what is seen, or (delays, 7, 7) of what moves by (down, right)."""
    return seen(frames) if code == "frames" else moving(frames)


def seen(frames: Frames) -> Levels:
    """(frames, height, width) -> (moments, 8, 8): brightness in few large cells, relative to the whole."""
    across = [shrink(n, m) for n, m in zip(frames.shape, (MOMENTS, SIDE, SIDE), strict=True)]
    small = np.einsum("tyx,Tt,Yy,Xx->TYX", frames, *across, optimize=True)
    relative = (small - small.mean()) / max(float(small.std()), 1e-6)
    return cut(relative, BRIGHT)


def moving(frames: Frames) -> Levels:
    """(frames, height, width) -> (delays, 7, 7): how much of the unusual comes again, after a delay and elsewhere."""
    blurred = gaussian_filter(frames, (0, BLUR, BLUR))
    unusual = blurred - blurred.mean(axis=0)
    unusual -= unusual.mean(axis=(1, 2), keepdims=True)  # without the light as a whole
    inner = unusual[:, REACH:-REACH, REACH:-REACH]
    found = np.empty((len(DELAYS), 2 * REACH + 1, 2 * REACH + 1))
    for d, delay in enumerate(DELAYS):
        moved = sliding_window_view(unusual[delay:], inner.shape[1:], axis=(1, 2))
        found[d] = np.einsum("tyxab,tab->yx", moved, inner[:-delay]) / (len(inner) - delay)
    found /= max(float(np.square(inner).sum()) / len(inner), 1e-12)
    found -= found.mean(axis=(1, 2), keepdims=True)
    found /= np.maximum(found.std(axis=(1, 2), keepdims=True), 1e-3)
    return cut(found, STRENGTH)
