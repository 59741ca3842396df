"""Four tones in noise, made anew for every seed: nothing about a sound is fixed but about which frequency it is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from bouton.domains.audio.mel import Ear
from bouton.domains.base import Outcome, Recorder
from bouton.domains.codes import CODES, coder
from bouton.domains.pictures import by_noise
from bouton.domains.recognition import Compared, Recognition, Task
from bouton.domains.recognizer import Examples, Labels, Learning
from bouton.mechanisms.parameters import Params, choice, integer, real

TONES = (200.0, 500.0, 1200.0, 2500.0)  # Hz
CLASSES = [f"{tone:.0f} Hz" for tone in TONES]
RATES = (8000, 11025, 16000, 22050)  # Hz
DETUNED = 0.05  # at most, as a share of the frequency
AMPLITUDE, DURATION, TONE = (0.05, 1.0), (0.3, 1.5), 0.15  # from, to; of the sound [s], and least of the tone in it [s]
NOISE = {f"noise {level:g}": level for level in (0.0, 0.5, 1.0, 1.5, 2.0, 4.0, 8.0)}
EAR = Ear(bands=24, low=100.0, high=3800.0, slots=8, cuts=(-8.0, 2.0, 8.0))


@dataclass(frozen=True)
class TonesSettings(Learning):
    """The fields of ``conf/domain/tones.yaml``."""

    examples: int = integer(2000, "training sounds, of which the last fifth are for choices", low=20)
    tests: int = integer(500, "test sounds at each level of noise", low=1)
    noise: float = real(2.0, "most noise in training, standard deviation / amplitude", low=0)
    code: str = choice("cells", CODES, "what the input nodes stand for")


class Tones(Recognition):
    """Columns: share of sounds recognised, on the validation (noise as in training) and at each level of noise."""

    name: ClassVar[str] = "tones"
    Settings: ClassVar[type[Params]] = TonesSettings
    settings: TonesSettings
    pictured: ClassVar[str] = "noise 2"

    def prepare(self, recorder: Recorder) -> Task:
        s, later = self.settings, self.settings.examples // 5
        self.coder = coder(s.code, EAR.shape, len(EAR.cuts) + 1, "bt")
        streams = [np.random.default_rng([self.seed, stream]) for stream in range(2 + len(NOISE))]
        fit = self._examples(streams[0], s.examples - later, (0.0, s.noise))
        validation = self._examples(streams[1], later, (0.0, s.noise))
        tests = {
            name: self._examples(stream, s.tests, (level, level))
            for stream, (name, level) in zip(streams[2:], recorder.track(NOISE.items(), "sounds"), strict=True)
        }
        return Task(self.coder.names(), CLASSES, fit, validation, tests)

    def finish(self, task: Task, found: Compared, recorder: Recorder) -> Outcome:
        outcome = super().finish(task, found, recorder)
        return replace(outcome, figures={"by_noise": by_noise(found.rows, NOISE), **outcome.figures})

    def _examples(self, random: np.random.Generator, count: int, noise: tuple[float, float]) -> Examples:
        labels: Labels = random.integers(0, len(TONES), count)
        grids = np.stack([EAR.levels(*tone(random, TONES[label], random.uniform(*noise))) for label in labels])
        return Examples(self.coder(grids), labels)


def tone(random: np.random.Generator, hz: float, noise: float) -> tuple[NDArray[np.float64], int]:
    """A sound and its sample rate: a sine near ``hz`` of random phase, amplitude and duration, which begins at a random
    time, in white noise whose standard deviation is ``noise`` times the amplitude."""
    rate = int(random.choice(RATES))
    length = int(rate * random.uniform(*DURATION))
    lasts = int(random.integers(int(TONE * rate), length + 1))
    begin = int(random.integers(0, length - lasts + 1))
    frequency = hz * (1 + random.uniform(-DETUNED, DETUNED))
    amplitude = random.uniform(*AMPLITUDE)
    sound = noise * amplitude * random.standard_normal(length)
    t = np.arange(lasts) / rate
    sound[begin : begin + lasts] += amplitude * np.sin(2 * np.pi * (frequency * t + random.uniform()))
    return sound, rate
