"""The baseline with as much compute as the arms: how many steps, how wide a body.

A control is planned when the runs that it answers have finished, from what they cost, and its plan is kept in
``controls.json``: measured speeds vary, and the same command must mean the same runs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from bouton.errors import ConfigError, DataError, suggest
from bouton.evidence.arms import Arm
from bouton.evidence.frame import FINISHED, read_config
from bouton.evidence.prices import TOLERANCE, costs
from bouton.evidence.statistics import baselines
from bouton.files import write_json

KINDS = ("flops", "time", "params")
FILE = "controls.json"


@dataclass(frozen=True)
class Control:
    """A control run: the baseline ``of`` with ``words`` added; ``ratio`` is its budget relative to the baseline's."""

    label: str
    kind: str
    of: str
    ratio: float
    words: tuple[str, ...]

    def arm(self) -> Arm:
        """How run folders and tables call it."""
        base, _, overrides = self.of.partition(" ")
        return Arm(base, overrides, control=self.kind, of=self.of, label=self.label)


def check_kinds(kinds: Iterable[str]) -> None:
    """Refuse unknown kinds.

    Raises:
        ConfigError: names the first.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigError(f"hydra.sweeper.controls: '{kind}' is unknown: {suggest(kind, KINDS)}")


def plan(sweep: Path, frame: pd.DataFrame, kinds: Sequence[str]) -> list[Control]:
    """The controls that the finished runs in ``frame`` call for: those kept in the folder, and new ones beyond them.

    For each baseline and kind the most expensive arm sets the budget; the report interpolates for the others.
    """
    kept = _read(sweep / FILE)
    finished = frame[frame["status"] == FINISHED]
    plain = finished[finished["mechanism"] == "none"]
    if plain.empty or finished["mechanism"].eq("none").all():
        return kept
    partner = baselines(finished)
    planned = list(kept)
    for base in dict.fromkeys(partner.values()):
        relative = [costs(finished, arm, base) for arm, partner_of in partner.items() if partner_of == base]
        for kind in kinds:
            needed = max((r for c in relative if not math.isnan(r := getattr(c, kind))), default=1.0)
            there = [c.ratio for c in planned if c.of == base and (c.kind == "params") == (kind == "params")]
            if needed <= max([1.0, *there]) * (1 + TOLERANCE[kind]):
                continue
            label = _label(base, kind, [c.label for c in planned])
            planned.append(_control(finished, label, kind, base, needed))
    if planned != kept:
        write_json(sweep / FILE, [asdict(control) for control in planned])
    return [control for control in planned if control.kind in kinds]


def _control(frame: pd.DataFrame, label: str, kind: str, base: str, needed: float) -> Control:
    run = frame[frame["arm"] == base].iloc[-1]
    config = read_config(Path(run["folder"]))
    if kind == "params":
        ratio, mixer_ratio = wider(config, needed)
        return Control(label, kind, base, ratio, (f"model.mixer_ratio={mixer_ratio!r}",))
    steps = int(run["step"])
    more = max(steps + 1, math.ceil(steps * needed))
    return Control(label, kind, base, more / steps, (f"trainer.max_steps={more}",))


def wider(config: Mapping[str, Any], needed: float) -> tuple[float, float]:
    """The smallest widening of the mixer that gives the plain body ``needed`` times its parameters.

    Args:
        config: resolved configuration of a baseline run, vocabulary included.

    Returns:
        The ratio of parameters that it has, and its ``model.mixer_ratio``.
    """
    model = dict(config["model"])
    hidden, start = int(model["hidden_size"]), float(model["mixer_ratio"])
    own = _parameters(model)
    high = 1
    while _parameters({**model, "mixer_ratio": start + high / hidden}) < needed * own:
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        enough = _parameters({**model, "mixer_ratio": start + middle / hidden}) >= needed * own
        low, high = (low, middle) if enough else (middle, high)
    ratio = start + high / hidden
    return _parameters({**model, "mixer_ratio": ratio}) / own, ratio


def _parameters(model: Mapping[str, Any]) -> int:
    from bouton.models.build import build

    body = build({"model": dict(model)}, device="meta")
    return sum(p.numel() for p in body.parameters() if p.requires_grad)


def _label(base: str, kind: str, taken: Iterable[str]) -> str:
    mechanism, _, overrides = base.partition(" ")
    known, number = set(taken), 1
    while True:
        label = f"{mechanism}@{kind}{number if number > 1 else ''}" + (f" {overrides}" if overrides else "")
        if label not in known:
            return label
        number += 1


def _read(path: Path) -> list[Control]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    return [Control(**{**entry, "words": tuple(entry["words"])}) for entry in content]
