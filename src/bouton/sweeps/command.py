"""What the words of the command mean for a search: fixed words, axes, seeds; and the words of the plain body."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from omegaconf import DictConfig, OmegaConf

from bouton.errors import ConfigError
from bouton.sweeps.axes import SCALES, Axis
from bouton.sweeps.derive import mechanism_axes, refusal
from bouton.sweeps.space import Space, require_axes


@dataclass(frozen=True)
class Command:
    """The words after the flags.

    Args:
        words: those with one value; every trial gets them.
        swept: those with a range or several values, by configuration path.
        seeds: of ``seed=0,1``; None where the command does not say it.
    """

    words: tuple[str, ...]
    swept: Mapping[str, Override]
    seeds: tuple[int, ...] | None


def read_command(arguments: Sequence[str]) -> Command:
    """Sort the words of the command.

    Raises:
        ConfigError: several values for a whole group.
    """
    fixed: list[str] = []
    swept: dict[str, Override] = {}
    seeds: tuple[int, ...] | None = None
    for override in OverridesParser.create().parse_overrides(list(arguments)):
        key = override.get_key_element().lstrip("+")
        if key == "seed":
            values = list(override.sweep_iterator()) if override.is_sweep_override() else [override.value()]
            if any(isinstance(value, bool) or not isinstance(value, int) for value in values):
                raise ConfigError(f"seed = {values} is not valid: integers")
            seeds = tuple(int(str(value)) for value in values)
        elif override.is_sweep_override():
            swept[key] = override
        else:
            assert override.input_line is not None
            fixed.append(override.input_line)
    return Command(tuple(fixed), swept, seeds)


def build_space(command: Command, cfg: DictConfig) -> Space:
    """The search space: the axes of the command, or without any all parameters of the mechanisms.

    Args:
        cfg: the configuration that the fixed words compose.

    Raises:
        ConfigError: there is nothing to tune, or an axis is not valid.
    """
    mechanisms: dict[str, dict[str, Any]] = {
        str(name): dict(OmegaConf.to_container(node, resolve=True))  # type: ignore[arg-type]
        for name, node in (cfg.get("mechanism") or {}).items()
    }
    narrowing: Any = OmegaConf.to_container(cfg.sweep, resolve=True) if cfg.get("sweep") else {}
    if command.swept:
        axes = [_word_axis(key, override, cfg) for key, override in command.swept.items()]
    else:
        named = {word.partition("=")[0].lstrip("+") for word in command.words}
        for name in narrowing:
            if name not in mechanisms:
                known = "+".join(sorted({*mechanisms, name}))
                raise ConfigError(f"sweep.{name}: '{name}' is not part of this configuration: choose mechanism={known}")
        axes = [
            axis
            for name, current in sorted(mechanisms.items())
            for axis in mechanism_axes(name, narrowing.get(name), current)
            if axis.key not in named  # a parameter that the command sets keeps its value
        ]
    space = Space(tuple(axes), lambda values: refusal(values, mechanisms))
    require_axes(space, "choose mechanism=..., or give a range, key='interval(low, high)'")
    return space


def plain_words(command: Command) -> list[str]:
    """The words that compose the plain body under the same conditions."""
    kept = [word for word in command.words if not _about(word, "mechanism") and not _about(word, "sweep")]
    return [*kept, "mechanism=none"]


def removals(cfg: DictConfig) -> list[str]:
    """Further words that take out the mechanisms whose parameters an experiment file sets."""
    return [f"~mechanism.{name}" for name in cfg.get("mechanism") or {}]


def _about(word: str, group: str) -> bool:
    key = word.partition("=")[0].lstrip("+~")
    return key == group or key.startswith((f"{group}.", f"{group}@"))


def _word_axis(key: str, override: Override, cfg: DictConfig) -> Axis:
    value = override.value()
    default = OmegaConf.select(cfg, key, default=None)
    if OmegaConf.is_config(default):
        raise ConfigError(
            f"{key} takes several values, but it is a group: a search tunes one composition, run the command for each"
        )
    if isinstance(value, IntervalSweep):
        scales = [tag for tag in value.tags if tag in SCALES]
        if len(scales) < len(value.tags) or len(scales) > 1:
            raise ConfigError(f"the tags {sorted(value.tags)} of {key} are not valid: one of {', '.join(SCALES)}")
        assert value.start is not None and value.end is not None
        kind = "integer" if isinstance(value.start, int) and isinstance(value.end, int) else "real"
        scale = scales[0] if scales else "linear"
        return Axis(key, kind, float(value.start), float(value.end), scale, default=default)
    if isinstance(value, RangeSweep) and value.step == 1 and isinstance(value.start, int):
        assert value.stop is not None
        return Axis(key, "integer", float(value.start), float(value.stop) - 1, default=default)
    options = tuple(_plain(option) for option in override.sweep_iterator())
    return Axis(key, "categorical", options=options, default=default)


def _plain(value: Any) -> Any:
    return getattr(value, "text", value)  # a quoted string
