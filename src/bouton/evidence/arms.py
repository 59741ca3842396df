"""Names of arms: what distinguishes the runs of one folder, beside their seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bouton.files import write_json

RECORD = "arm.json"
# A run is not another one for these.
_FREE = ("seed", "run_dir", "ckpt_path", "logger", "callbacks", "data.cache_dir", "model.vocab_size", "hydra")

Flat = dict[str, Any]


@dataclass(frozen=True)
class Arm:
    """One cell of a study.

    Attributes:
        mechanism: canonical name, ``none`` or ``hebb+presyn``.
        overrides: what else distinguishes the arm, ``key=value`` separated by blanks.
        control: for the baseline with another budget, which one: ``flops``, ``time`` or ``params``.
        of: for a control, the label of the arm whose budget was changed.
        label: how reports call it.
    """

    mechanism: str
    overrides: str = ""
    control: str | None = None
    of: str | None = None
    label: str = ""

    def __post_init__(self) -> None:
        if not self.label:
            object.__setattr__(self, "label", f"{self.mechanism} {self.overrides}".strip())


def write_record(folder: Path, arm: Arm) -> None:
    """Say in a run folder which arm it belongs to."""
    write_json(folder / RECORD, vars(arm))


def read_record(folder: Path) -> Arm | None:
    """What :func:`write_record` wrote; None where no grid made this run."""
    try:
        content = json.loads((folder / RECORD).read_text())
        return Arm(**content)
    except (OSError, ValueError, TypeError):
        return None


def name_arms(configs: Sequence[Mapping[str, Any]]) -> list[Arm]:
    """The arm of each configuration: mechanisms, and every setting in which the configurations differ.

    A parameter of a mechanism counts where runs with that mechanism differ in it. Where a group's ``name`` differs
    (another optimizer), fields that go with the name are left out.
    """
    flat = [flatten(config) for config in configs]
    names = [sorted(str(name) for name in config.get("mechanism") or {}) for config in configs]
    differing = _differing(flat, names)
    arms = []
    for settings, mechanisms in zip(flat, names, strict=True):
        words = [
            f"{key.removeprefix('mechanism.')}={_text(settings[key])}"
            for key in differing
            if key in settings and (not key.startswith("mechanism.") or key.split(".")[1] in mechanisms)
        ]
        arms.append(Arm("+".join(mechanisms) or "none", " ".join(words)))
    return arms


def flatten(config: Any, prefix: str = "") -> Flat:
    """A nested mapping as ``a.b.c -> leaf``."""
    if not isinstance(config, Mapping):
        return {prefix: config}
    flat: Flat = {}
    for key, value in config.items():
        flat.update(flatten(value, f"{prefix}.{key}" if prefix else str(key)))
    return flat


def _differing(flat: list[Flat], names: list[list[str]]) -> list[str]:
    keys = sorted({key for settings in flat for key in settings if not _is_free(key)})
    found = []
    for key in keys:
        if key == "mechanism":
            continue
        if key.startswith("mechanism."):
            owner = key.split(".")[1]
            values = [repr(s.get(key)) for s, present in zip(flat, names, strict=True) if owner in present]
        else:
            values = [repr(settings.get(key)) for settings in flat]
        if len(set(values)) > 1:
            found.append(key)
    return [key for key in found if not _follows_name(key, found, flat)]


def _follows_name(key: str, differing: list[str], flat: list[Flat]) -> bool:
    """Whether ``group.field`` is told by ``group.name``, which differs too."""
    name = f"{key.split('.')[0]}.name"
    if key == name or name not in differing:
        return False
    values: dict[str, set[str]] = {}
    for settings in flat:
        values.setdefault(repr(settings.get(name)), set()).add(repr(settings.get(key)))
    return all(len(found) == 1 for found in values.values())


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in _FREE)


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)
