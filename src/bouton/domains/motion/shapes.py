"""In which direction a shape moves: clips made anew for every seed, with random shape, size, speed, place and noise."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from bouton.domains.base import Outcome, Recorder
from bouton.domains.motion import eye
from bouton.domains.motion.eye import Frames
from bouton.domains.pictures import by_noise
from bouton.domains.recognition import Compared, Recognition, Task
from bouton.domains.recognizer import Examples, Labels, Learning
from bouton.mechanisms.parameters import Params, choice, integer, real

CLASSES = ("right", "down right", "down", "down left", "left", "up left", "up", "up right", "still")
STILL = 8
Floats = NDArray[np.float64]
SIDE, FRAMES = 32, 12  # pixels and frames of a clip
SHAPES = ("square", "disc", "bar", "ring")
RADIUS, SPEED = (2.0, 5.0), (0.4, 1.4)  # from, to [pixels, pixels per frame]
TURNED = np.pi / 12  # at most, from the direction of the class
CONTRAST = (0.2, 1.0)
NOISE = {f"noise {level:g}": level for level in (0.0, 0.25, 0.5, 1.0, 2.0)}


@dataclass(frozen=True)
class ShapesSettings(Learning):
    """The fields of ``conf/domain/shapes.yaml``."""

    epochs: int = integer(10, "times through the training examples", low=1)
    eta: float = real(0.003, "rate", low=0, low_open=True)
    slower: float = real(0.8, "factor of the rate from one time to the next", low=0, high=1, low_open=True)
    examples: int = integer(2000, "training clips, of which the last fifth are for choices", low=20)
    tests: int = integer(500, "test clips at each level of noise", low=1)
    noise: float = real(1.0, "most noise in training, standard deviation / contrast", low=0)
    code: str = choice("motion", eye.CODES, "what the input nodes stand for")


class Shapes(Recognition):
    """Columns: share of clips recognised, on the validation (noise as in training) and at each level of noise."""

    name: ClassVar[str] = "shapes"
    Settings: ClassVar[type[Params]] = ShapesSettings
    settings: ShapesSettings
    pictured: ClassVar[str] = "noise 1"

    def prepare(self, recorder: Recorder) -> Task:
        s, later = self.settings, self.settings.examples // 5
        self.coder = eye.coder(s.code)
        streams = [np.random.default_rng([self.seed, stream]) for stream in range(2 + len(NOISE))]
        fit = self._examples(streams[0], s.examples - later, (0.0, s.noise))
        validation = self._examples(streams[1], later, (0.0, s.noise))
        tests = {
            name: self._examples(stream, s.tests, (level, level))
            for stream, (name, level) in zip(streams[2:], recorder.track(NOISE.items(), "clips"), strict=True)
        }
        return Task(self.coder.names(), CLASSES, fit, validation, tests)

    def finish(self, task: Task, found: Compared, recorder: Recorder) -> Outcome:
        outcome = super().finish(task, found, recorder)
        return replace(outcome, figures={"by_noise": by_noise(found.rows, NOISE), **outcome.figures})

    def _examples(self, random: np.random.Generator, count: int, noise: tuple[float, float]) -> Examples:
        labels: Labels = random.integers(0, len(CLASSES), count)
        clips = (clip(random, int(label), random.uniform(*noise)) for label in labels)
        return Examples(self.coder(np.stack([eye.levels(frames, self.settings.code) for frames in clips])), labels)


def clip(random: np.random.Generator, label: int, noise: float) -> Frames:
    """(12, 32, 32) frames: a shape, always whole in the picture, moves as class ``label`` says, in white noise whose
    standard deviation is ``noise`` times the contrast."""
    angle = label * np.pi / 4 + random.uniform(-TURNED, TURNED)
    speed = 0.0 if label == STILL else random.uniform(*SPEED)
    step = speed * np.array([np.sin(angle), np.cos(angle)])  # down, right
    radius = random.uniform(*RADIUS)
    way = step * (FRAMES - 1)
    low, high = radius + np.maximum(-way, 0), SIDE - 1 - radius - np.maximum(way, 0)
    start = random.uniform(low, high)
    contrast = random.uniform(*CONTRAST) * random.choice([-1.0, 1.0])
    shape = str(random.choice(SHAPES))
    at = start + step * np.arange(FRAMES)[:, None]
    y, x = (np.arange(SIDE)[None, :] - at[:, i, None] for i in (0, 1))
    inside = coverage(shape, y[:, :, None], x[:, None, :], radius)
    frames = contrast * inside + abs(contrast) * noise * random.standard_normal(inside.shape)
    return np.asarray(frames, np.float32)


def coverage(shape: str, y: Floats, x: Floats, radius: float) -> Floats:
    """How far a pixel, ``y`` and ``x`` from the middle, is inside of the shape, 0 to 1: edges are one pixel soft."""
    if shape in ("disc", "ring"):
        outside = np.hypot(y, x) - radius
        disc: Floats = np.clip(0.5 - outside, 0, 1)
        return disc - np.clip(0.5 - outside - radius / 2, 0, 1) if shape == "ring" else disc
    half = radius if shape == "square" else radius / 2.5
    box: Floats = np.clip(0.5 + radius - np.abs(y), 0, 1) * np.clip(0.5 + half - np.abs(x), 0, 1)
    return box
