"""Spoken digits (Free Spoken Digit Dataset): by speakers that are known, and by speakers that were never heard."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from bouton.domains.archive import read_npz
from bouton.domains.audio.mel import Ear
from bouton.domains.base import Outcome, Recorder, Row, place
from bouton.domains.codes import CODES, Levels, coder
from bouton.domains.pictures import confusion
from bouton.domains.recognition import Compared, Recognition, Task, compare
from bouton.domains.recognizer import Examples, Learning
from bouton.errors import DataError
from bouton.mechanisms.parameters import Params, choice, integer, real

EAR = Ear(bands=24, low=100.0, high=3800.0, slots=12, cuts=(-8.0, 2.0, 8.0))
CLASSES = [str(digit) for digit in range(10)]
VALIDATION_FROM = 45  # of the 50 recordings of each speaker and digit; the last are for choices
KEYS = ("audio", "offsets", "label", "speaker", "speaker_names", "recording", "is_test", "sample_rate")
NEW = "new speaker"


@dataclass(frozen=True)
class DigitsSettings(Learning):
    """The fields of ``conf/domain/digits.yaml``."""

    epochs: int = integer(10, "times through the training examples", low=1)
    eta: float = real(0.003, "rate", low=0, low_open=True)
    slower: float = real(0.8, "factor of the rate from one time to the next", low=0, high=1, low_open=True)
    path: str | None = place("the file of recordings, fsdd.npz")
    code: str = choice("cells", CODES, "what the input nodes stand for")


class Digits(Recognition):
    """Columns: share of recordings recognised, on the validation and on the test set of known speakers; mean and least
    over the speakers of the share right where all other speakers were learned."""

    name: ClassVar[str] = "digits"
    Settings: ClassVar[type[Params]] = DigitsSettings
    settings: DigitsSettings

    def prepare(self, recorder: Recorder) -> Task:
        data = read_npz(self.settings.path, "the recordings of spoken digits, fsdd.npz", KEYS)
        self._check(data)
        code = coder(self.settings.code, EAR.shape, len(EAR.cuts) + 1, "bt")
        self.every = Examples(code(self._grids(data, recorder)), data["label"].astype(np.int64))
        self.speaker, self.names = data["speaker"], [str(name) for name in data["speaker_names"]]
        self.late = data["recording"] >= VALIDATION_FROM
        test = data["is_test"].astype(bool)
        fit, validation = self.every[~test & ~self.late], self.every[~test & self.late]
        return Task(code.names(), CLASSES, fit, validation, {"test": self.every[test]})

    def finish(self, task: Task, found: Compared, recorder: Recorder) -> Outcome:
        outcome = super().finish(task, found, recorder)
        others: dict[str, Compared] = {}
        for number, name in recorder.track(list(enumerate(self.names)), "speakers held out"):
            known = self.speaker != number
            parts = (self.every[known & ~self.late], self.every[known & self.late])
            others[name] = compare(
                Task(task.inputs, CLASSES, *parts, {name: self.every[~known]}),
                self.settings, seed=self.seed, threads=self.threads, recorder=Recorder(), strength=found.strength,
            )  # fmt: skip
        rows: list[Row] = []
        facts = dict(outcome.facts)
        for i, row in enumerate(found.rows):
            each = {name: float(other.rows[i][name]) for name, other in others.items()}
            rows.append({**row, NEW: float(np.mean(list(each.values()))), "worst speaker": min(each.values())})
            if i == 0:
                facts |= {f"{name} as a new speaker": share for name, share in each.items()}
        meant = np.concatenate([self.every.labels[self.speaker == number] for number in range(len(self.names))])
        said = np.concatenate([others[name].answers[name] for name in self.names])
        figures = {**outcome.figures, "confusion_new_speaker": confusion(meant, said, CLASSES)}
        return replace(outcome, table=rows, facts=facts, figures=figures)

    def _check(self, data: dict[str, NDArray[np.generic]]) -> None:
        count = len(data["label"])
        for key, length in (("offsets", count + 1), ("speaker", count), ("recording", count), ("is_test", count)):
            if data[key].shape != (length,):
                raise DataError(
                    f"domain.path = {self.settings.path}: '{key}' has shape {data[key].shape}, not ({length},)"
                )

    def _grids(self, data: dict[str, NDArray[np.generic]], recorder: Recorder) -> Levels:
        rate, offsets = int(data["sample_rate"]), data["offsets"]
        sounds = data["audio"].astype(np.float64) / 2**15
        bounds = list(pairwise(offsets))
        return np.stack([EAR.levels(sounds[a:b], rate) for a, b in recorder.track(bounds, "listening")])
