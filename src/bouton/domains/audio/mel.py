"""Sound as a grid of levels: loudness in bands of an absolute frequency axis, over the course of the sound.

Nothing depends on the sample rate but how much of the axis can be heard, and little on the duration or the volume.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bouton.domains.codes import Levels, cut, shrink

Floats = NDArray[np.float64]
FLOOR = 1e-10  # power below which nothing is heard, relative to full scale


@dataclass(frozen=True)
class Ear:
    """How sounds become grids.

    Attributes:
        bands: frequency bands, equally wide in mel.
        low, high: limits of the axis [Hz].
        slots: equal parts of the duration.
        cuts: [dB] relative to the mean over the bands at that time; a level is how many of them are passed.
        span: [dB] below the loudest part of the sound, where silence begins.
        window, hop: of the short-time spectrum [s].
    """

    bands: int
    low: float
    high: float
    slots: int
    cuts: tuple[float, ...]
    span: float = 60.0
    window: float = 0.032
    hop: float = 0.008

    @property
    def shape(self) -> tuple[int, int]:
        """(bands, slots)."""
        return self.bands, self.slots

    def levels(self, sound: Floats, rate: int) -> Levels:
        """(samples,) at ``rate`` [Hz] -> (bands, slots), 0 to ``len(cuts)``; a band that cannot be heard is 0."""
        loud = self.loudness(sound, rate)
        heard = np.isfinite(loud)
        loud = np.maximum(loud, loud[heard].max() - self.span, where=heard, out=loud)
        mean = loud.mean(axis=0, where=heard, keepdims=True)
        relative = np.where(heard, loud - mean, -np.inf)
        return cut(relative, self.cuts)

    def loudness(self, sound: Floats, rate: int) -> Floats:
        """(samples,) -> (bands, slots) [dB]; -inf in bands that reach above half the sample rate."""
        power = self._spectrum(sound, rate)
        filters = mel_filters(self.bands, self.low, self.high, power.shape[0], rate)
        slots = shrink(power.shape[1], self.slots).astype(np.float64)
        loud = 10 * np.log10(filters @ power + FLOOR) @ slots.T
        loud[band_edges(self.bands, self.low, self.high)[2:] > rate / 2 + 1e-6] = -np.inf
        return loud

    def _spectrum(self, sound: Floats, rate: int) -> Floats:
        """(frequencies, frames) power of a Hann window."""
        length = max(2, round(self.window * rate))
        if len(sound) < length:
            sound = np.pad(sound, (0, length - len(sound)))
        frames = np.lib.stride_tricks.sliding_window_view(sound, length)[:: max(1, round(self.hop * rate))]
        window = np.hanning(length + 2)[1:-1]
        size = 1 << (2 * length - 1).bit_length()  # finer than the window resolves, so that no band falls between
        power: Floats = (np.abs(np.fft.rfft(frames * window, size)) ** 2).T / (window**2).sum()
        return power


def band_edges(bands: int, low: float, high: float) -> Floats:
    """(bands + 2,) [Hz] where the triangles begin, peak and end: equally spaced in mel, m = 2595 log10(1 + f / 700)."""
    lowest, highest = (2595 * math.log10(1 + hz / 700) for hz in (low, high))
    mel = np.linspace(lowest, highest, bands + 2)
    return np.asarray(700 * (10 ** (mel / 2595) - 1))


def mel_filters(bands: int, low: float, high: float, frequencies: int, rate: int) -> Floats:
    """(bands, frequencies) triangular weights that add up to 1, for frequencies from 0 to half the rate."""
    edges = band_edges(bands, low, high)
    f = np.linspace(0, rate / 2, frequencies)
    up = (f - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    down = (edges[2:, None] - f) / (edges[2:] - edges[1:-1])[:, None]
    weights = np.maximum(np.minimum(up, down), 0.0)
    return np.asarray(weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-12))
