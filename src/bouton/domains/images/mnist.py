"""Handwritten digits: the canonical MNIST split, 16 x 16 cells of 4 levels, one node for what is at a place.

Codes: ``cells`` is one node for each level above 0 of each cell; ``patches`` is one node for each content of each
2 x 2 patch in black and white, which tells edges of different directions apart.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from bouton.domains.base import Outcome, Recorder, place
from bouton.domains.codes import Cells, Levels, Patches, shrink
from bouton.domains.images.idx import read_idx
from bouton.domains.pictures import weight_images
from bouton.domains.recognition import Compared, Recognition, Task
from bouton.domains.recognizer import Examples, Learning
from bouton.errors import ConfigError, DataError
from bouton.mechanisms.parameters import Params, choice, integer
from bouton.substrate.arrays import Ids

SIDE, LEVELS, BLACK = 16, 4, 2  # cells of a side, levels of a cell, and from which level on a cell of a patch is black
CHUNK = 500  # images at a time, so that they stay in the cache
CLASSES = [str(digit) for digit in range(10)]
Images = NDArray[np.uint8]


@dataclass(frozen=True)
class MnistSettings(Learning):
    """The fields of ``conf/domain/mnist.yaml``."""

    path: str | None = place("the folder with the four files of MNIST, as IDX or IDX.gz")
    code: str = choice("patches", ("patches", "cells"), "what the input nodes stand for")
    validation: int = integer(10000, "last training images, on which choices are made", low=1)


class Mnist(Recognition):
    """Columns: share of images recognised, on the last training images and on the canonical test set."""

    name: ClassVar[str] = "mnist"
    Settings: ClassVar[type[Params]] = MnistSettings
    settings: MnistSettings

    def prepare(self, recorder: Recorder) -> Task:
        s = self.settings
        (images, labels), (test_images, test_labels) = (self._read(part) for part in ("train", "t10k"))
        if s.validation >= len(images):
            raise ConfigError(
                f"domain.validation = {s.validation} is not valid: below the {len(images)} images of training"
            )
        self.encoder = Encoder(images.shape[1:], s.code)
        begin = time.perf_counter()
        train = Examples(self.encoder(images), labels)
        self.seconds = time.perf_counter() - begin
        test = Examples(self.encoder(test_images), test_labels)
        fit = len(images) - s.validation
        return Task(self.encoder.coder.names(), CLASSES, train[:fit], train[fit:], {"test": test})

    def finish(self, task: Task, found: Compared, recorder: Recorder) -> Outcome:
        outcome = super().finish(task, found, recorder)
        once = float(np.median(found.recognizer.seconds))
        facts = {"seconds to encode the training images": self.seconds, "seconds to learn them once, median": once}
        pictures = {"weights": weight_images(found.recognizer, self.encoder.coder, CLASSES)}
        return replace(outcome, facts={**outcome.facts, **facts}, figures={**outcome.figures, **pictures})

    def _read(self, part: str) -> tuple[Images, NDArray[np.int64]]:
        if self.settings.path is None:
            raise DataError("domain.path = null is not valid: name the folder with the four files of MNIST")
        folder = Path(self.settings.path).expanduser()
        images = read_idx(folder, f"{part}-images-idx3-ubyte", 3)
        labels = read_idx(folder, f"{part}-labels-idx1-ubyte", 1).astype(np.int64)
        if len(images) != len(labels):
            raise DataError(f"domain.path = {folder}: {len(images)} images but {len(labels)} labels in {part}")
        if not len(images) or labels.max() > 9:
            raise DataError(f"domain.path = {folder}: {part} has no images, or labels above 9")
        return images, labels


class Encoder:
    """Images (examples, height, width) of bytes -> active nodes.

    Args:
        shape: height and width of the images.
        code: ``patches`` or ``cells``.
    """

    def __init__(self, shape: tuple[int, ...], code: str) -> None:
        height, width = shape
        self.code = code
        self.coder = Patches((SIDE, SIDE), 2) if code == "patches" else Cells((SIDE, SIDE), LEVELS)
        self.down = shrink(height, SIDE) * np.float32(LEVELS / 255)
        self.across = np.ascontiguousarray(shrink(width, SIDE).T)

    def __call__(self, images: Images) -> Ids:
        """(examples, width) numbers of active nodes, NONE where there are fewer."""
        return self.coder(self.levels(images))

    def levels(self, images: Images) -> Levels:
        """(examples, 16, 16): the mean brightness of a cell in four equal steps; for patches 0 or 1."""
        out = np.empty((len(images), SIDE, SIDE), np.uint8)
        for i in range(0, len(images), CHUNK):
            bright = self.down @ images[i : i + CHUNK].astype(np.float32) @ self.across
            if self.code == "patches":
                out[i : i + CHUNK] = bright >= BLACK
            else:
                out[i : i + CHUNK] = np.minimum(bright, LEVELS - 1)
        return out
