"""Which of a few video clips a short window is from; windows of training, of choices and of the test lie apart in time.

That is less than it seems: frames of one clip share their scene, so that one picture of each clip may do. The code
``motion`` hides the scene and leaves what moves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bouton.domains.archive import read_npz
from bouton.domains.base import Recorder, place
from bouton.domains.codes import shrink
from bouton.domains.motion import eye
from bouton.domains.motion.eye import Frames
from bouton.domains.recognition import Recognition, Task
from bouton.domains.recognizer import Examples, Learning
from bouton.errors import DataError
from bouton.mechanisms.parameters import Params, choice, integer, real

RATE = 10.0  # frames per second, at which every clip is looked at
SIDE, LENGTH = 32, 10  # pixels of a side, and frames of a window
PARTS = {"fit": (0.0, 0.6), "validation": (0.6, 0.78), "test": (0.78, 1.0)}  # of a clip's duration


@dataclass(frozen=True)
class ClipsSettings(Learning):
    """The fields of ``conf/domain/clips.yaml``."""

    epochs: int = integer(20, "times through the training windows", low=1)
    eta: float = real(0.003, "rate", low=0, low_open=True)
    slower: float = real(0.9, "factor of the rate from one time to the next", low=0, high=1, low_open=True)
    batch: int = integer(16, "windows for which the weights stand still", low=1)
    path: str | None = place("the file of clips: grey frames, and <name>_fps for each")
    windows: int = integer(
        60, "windows of each clip for training, at most; a third as many for choices and test", low=3
    )
    code: str = choice("motion", eye.CODES, "what the input nodes stand for")


class Clips(Recognition):
    """Columns: share of windows recognised, in the part of the clips for choices and in the last part."""

    name: ClassVar[str] = "clips"
    Settings: ClassVar[type[Params]] = ClipsSettings
    settings: ClipsSettings

    def prepare(self, recorder: Recorder) -> Task:
        clips = self._read()
        code = eye.coder(self.settings.code)
        parts: dict[str, Examples] = {}
        for part, (begin, end) in PARTS.items():
            grids, labels = [], []
            most = self.settings.windows if part == "fit" else self.settings.windows // 3
            for label, frames in enumerate(recorder.track(clips.values(), part)):
                for window in windows(frames[round(begin * len(frames)) : round(end * len(frames))], most):
                    grids.append(eye.levels(window, self.settings.code))
                    labels.append(label)
            parts[part] = Examples(code(np.stack(grids)), np.array(labels))
        return Task(code.names(), list(clips), parts["fit"], parts["validation"], {"test": parts["test"]})

    def _read(self) -> dict[str, Frames]:
        path = self.settings.path
        data = read_npz(path, "clips in grey, clips_gray.npz")
        clips = {}
        for name, frames in data.items():
            if f"{name}_fps" in data:
                if frames.ndim != 3 or min(frames.shape) < 1:
                    raise DataError(
                        f"domain.path = {path}: '{name}' has shape {frames.shape}, not (frames, height, width)"
                    )
                clips[name] = at_rate(frames, float(data[f"{name}_fps"]))
                if len(clips[name]) * (PARTS["validation"][1] - PARTS["validation"][0]) < LENGTH + 1:
                    raise DataError(f"domain.path = {path}: '{name}' lasts {len(frames)} frames, which is too short")
        if len(clips) < 2:
            raise DataError(f"domain.path = {path} has {len(clips)} clips with a <name>_fps: two at least")
        return clips


def at_rate(frames: Frames, fps: float) -> Frames:
    """(frames, height, width) at ``fps`` -> (frames at 10 per second, 32, 32), 0 to 1; each the nearest in time."""
    count = int(len(frames) / fps * RATE)
    near = np.minimum(np.round(np.arange(count) * fps / RATE).astype(int), len(frames) - 1)
    down, across = (shrink(n, SIDE) for n in frames.shape[1:])
    return np.asarray(down @ (frames[near].astype(np.float32) / 255) @ across.T)


def windows(frames: Frames, most: int) -> list[Frames]:
    """At most so many windows of 10 frames, equally far apart from the first to the last; none reaches outside."""
    last = len(frames) - LENGTH
    starts = np.unique(np.linspace(0, last, min(most, last + 1)).round().astype(int))
    return [frames[start : start + LENGTH] for start in starts]
