"""BasicMotions: what someone does, from the accelerometer and gyroscope of a watch; the archive's own split.

Each channel is heard like a sound: power in bands of an absolute frequency axis, over all of the ten seconds, so that
it does not matter when a step is taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from bouton.domains.archive import read_npz
from bouton.domains.base import Recorder, place
from bouton.domains.codes import Cells, Levels, cut
from bouton.domains.recognition import Recognition, Task
from bouton.domains.recognizer import Examples, Learning
from bouton.errors import ConfigError, DataError
from bouton.mechanisms.parameters import Params, integer, real

BANDS = (0.3, 0.6, 1.2, 2.4, 5.0)  # Hz
CUTS = (-30.0, -20.0, -10.0, 0.0, 10.0)  # dB, of the mean square of a band in the units of the channel
KEYS = ("x_train", "y_train", "x_test", "y_test", "classes", "channels", "rate_hz")


@dataclass(frozen=True)
class BasicMotionsSettings(Learning):
    """The fields of ``conf/domain/basic_motions.yaml``."""

    epochs: int = integer(20, "times through the training series", low=1)
    eta: float = real(0.1, "rate", low=0, low_open=True)
    slower: float = real(0.9, "factor of the rate from one time to the next", low=0, high=1, low_open=True)
    batch: int = integer(4, "series for which the weights stand still", low=1)
    path: str | None = place("the file of series, basic_motions.npz")
    validation: int = integer(10, "training series, drawn at random, on which choices are made", low=1)


class BasicMotions(Recognition):
    """Columns: share of series recognised, on the validation and on the archive's test set."""

    name: ClassVar[str] = "basic_motions"
    Settings: ClassVar[type[Params]] = BasicMotionsSettings
    settings: BasicMotionsSettings

    def prepare(self, recorder: Recorder) -> Task:
        path = self.settings.path
        data = read_npz(path, "the series of BasicMotions, basic_motions.npz", KEYS)
        channels, rate = [str(name) for name in data["channels"]], float(data["rate_hz"])
        code = Cells((len(channels), len(BANDS) - 1), len(CUTS) + 1, "cb")
        examples = {}
        for part in ("train", "test"):
            series, labels = data[f"x_{part}"], data[f"y_{part}"].astype(np.int64)
            if series.ndim != 3 or series.shape[:2] != (len(labels), len(channels)):
                wanted = f"({len(labels)}, {len(channels)}, steps)"
                raise DataError(f"domain.path = {path}: 'x_{part}' has shape {series.shape}, not {wanted}")
            examples[part] = Examples(code(levels(series, rate)), labels)
        train, last = examples["train"], self.settings.validation
        if last >= len(train):
            raise ConfigError(f"domain.validation = {last} is not valid: below the {len(train)} series of training")
        order = np.random.default_rng(self.seed).permutation(len(train))
        classes = [str(name) for name in data["classes"]]
        return Task(code.names(), classes, train[order[last:]], train[order[:last]], {"test": examples["test"]})


def levels(series: NDArray[np.floating], rate: float) -> Levels:
    """(series, channels, steps) at ``rate`` [Hz] -> (series, channels, bands): power, in steps of 10 dB."""
    centred = series.astype(np.float64) - series.mean(axis=2, keepdims=True)
    window = np.hanning(series.shape[2] + 2)[1:-1]
    power = np.abs(np.fft.rfft(centred * window, axis=2)) ** 2 * 2 / ((window**2).sum() * series.shape[2])
    f = np.fft.rfftfreq(series.shape[2], 1 / rate)
    bands = [power[:, :, (f >= a) & (f < b)].sum(axis=2) for a, b in pairwise(BANDS)]
    loud = 10 * np.log10(np.stack(bands, axis=2) + 1e-10)
    return cut(loud, CUTS)
