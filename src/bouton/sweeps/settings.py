"""``hydra.sweeper.*`` of a CMA-ES search, checked; ``conf/hydra/sweeper/cmaes.yaml`` says what each key means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bouton.errors import ConfigError, suggest
from bouton.sweeps.engine import POLICIES

PATH = "hydra.sweeper"
_SHAPE: dict[str, tuple[str, ...]] = {
    "seeds": (),
    "search_seed": (),
    "popsize": (),
    "sigma": (),
    "trials": (),
    "group_trials": (),
    "influential": (),
    "screen": ("trajectories", "levels"),
    "weights": ("quality", "performance"),
    "costs": (),
    "stagnation": ("policy", "patience", "min_delta"),
    "hopeless": ("against", "after", "confidence", "slack"),
    "gate": ("enforce", "seeds", "probes", "known_bad"),
    "confirm_seeds": (),
    "give_up_after": (),
}
_MAY_BE_NULL = ("popsize", "hopeless", "gate")
AGAINST = ("median", "elite")


@dataclass(frozen=True)
class Screen:
    """Size of the Morris screen."""

    trajectories: int
    levels: int


@dataclass(frozen=True)
class Stagnation:
    """When a search begins anew, and how."""

    policy: str
    patience: int | None
    min_delta: float


@dataclass(frozen=True)
class Hopeless:
    """When a trial is stopped early."""

    against: str
    after: int
    confidence: float
    slack: float


@dataclass(frozen=True)
class Gate:
    """What must hold before an expensive search."""

    enforce: bool
    seeds: int
    probes: int
    known_bad: tuple[str, ...]


@dataclass(frozen=True)
class Settings:
    """All settings of a search."""

    seeds: tuple[int, ...]
    search_seed: int
    popsize: int | None
    sigma: float
    trials: int
    group_trials: int
    influential: int
    screen: Screen
    quality: float
    performance: float
    costs: tuple[str, ...]
    stagnation: Stagnation
    hopeless: Hopeless | None
    gate: Gate | None
    confirm_seeds: int
    give_up_after: int

    def describe(self) -> dict[str, Any]:
        """In plain types, for the journal."""
        return asdict(self)


def read_settings(config: Mapping[str, Any]) -> Settings:
    """The settings in ``config``, the content of ``hydra.sweeper``.

    Raises:
        ConfigError: an unknown or missing key, or a value that is not valid.
    """
    _check_keys(config)
    screen, weights, stagnation = config["screen"], config["weights"], config["stagnation"]
    hopeless, gate = config["hopeless"], config["gate"]
    seeds = config["seeds"] if isinstance(config["seeds"], list | tuple) else [config["seeds"]]
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"{PATH}.seeds = {list(seeds)} is not valid: one seed or more, none of them twice")
    quality = _number(weights["quality"], "weights.quality", low=0)
    performance = _number(weights["performance"], "weights.performance", low=0)
    if quality + performance <= 0:
        raise ConfigError(f"{PATH}.weights are both 0: one must be positive")
    costs = tuple(str(name) for name in config["costs"] or ())
    if performance > 0 and not costs:
        raise ConfigError(f"{PATH}.costs is empty: name a cost of summary.json, or set {PATH}.weights.performance=0")
    return Settings(
        seeds=tuple(_integer(seed, "seeds", low=0) for seed in seeds),
        search_seed=_integer(config["search_seed"], "search_seed", low=0),
        popsize=None if config["popsize"] is None else _integer(config["popsize"], "popsize", low=2),
        sigma=_number(config["sigma"], "sigma", low=0, open_low=True),
        trials=_integer(config["trials"], "trials", low=1),
        group_trials=_integer(config["group_trials"], "group_trials", low=0),
        influential=_integer(config["influential"], "influential", low=1),
        screen=Screen(
            _integer(screen["trajectories"], "screen.trajectories", low=2), _even(screen["levels"], "screen.levels")
        ),
        quality=quality / (quality + performance),
        performance=performance / (quality + performance),
        costs=costs,
        stagnation=Stagnation(
            policy=_one_of(stagnation["policy"], "stagnation.policy", POLICIES),
            patience=None
            if stagnation["patience"] is None
            else _integer(stagnation["patience"], "stagnation.patience", low=1),
            min_delta=_number(stagnation["min_delta"], "stagnation.min_delta", low=0),
        ),
        hopeless=None
        if hopeless is None
        else Hopeless(
            against=_one_of(hopeless["against"], "hopeless.against", AGAINST),
            after=_integer(hopeless["after"], "hopeless.after", low=1),
            confidence=_number(hopeless["confidence"], "hopeless.confidence", low=0.5, high=0.999),
            slack=_number(hopeless["slack"], "hopeless.slack", low=0, high=1),
        ),
        gate=None
        if gate is None
        else Gate(
            enforce=bool(gate["enforce"]),
            seeds=_integer(gate["seeds"], "gate.seeds", low=2),
            probes=_integer(gate["probes"], "gate.probes", low=2),
            known_bad=tuple(str(word) for word in gate["known_bad"] or ()),
        ),
        confirm_seeds=_integer(config["confirm_seeds"], "confirm_seeds", low=0),
        give_up_after=_integer(config["give_up_after"], "give_up_after", low=1),
    )


def _check_keys(config: Mapping[str, Any]) -> None:
    for name, value in config.items():
        if name not in _SHAPE:
            raise ConfigError(f"{PATH}.{name} is unknown: {suggest(str(name), _SHAPE)}")
        for field in value if isinstance(value, Mapping) else ():
            if field not in _SHAPE[name]:
                raise ConfigError(f"{PATH}.{name}.{field} is unknown: {suggest(str(field), _SHAPE[name])}")
    for name, fields in _SHAPE.items():
        if name not in config:
            raise ConfigError(f"{PATH}.{name} is missing")
        value = config[name]
        if value is None:
            if name not in _MAY_BE_NULL:
                raise ConfigError(f"{PATH}.{name} = null is not valid: see conf/hydra/sweeper/cmaes.yaml")
        elif fields:
            if not isinstance(value, Mapping):
                raise ConfigError(f"{PATH}.{name} = {value!r} is not valid: it holds {', '.join(fields)}")
            for field in fields:
                if field not in value:
                    raise ConfigError(f"{PATH}.{name}.{field} is missing")


def _integer(value: Any, name: str, *, low: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ConfigError(f"{PATH}.{name} = {value!r} is not valid: an integer >= {low}")
    return value


def _even(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 2 or value % 2:
        raise ConfigError(f"{PATH}.{name} = {value!r} is not valid: an even integer >= 2")
    return value


def _number(value: Any, name: str, *, low: float, high: float | None = None, open_low: bool = False) -> float:
    ok = not isinstance(value, bool) and isinstance(value, int | float)
    if not ok or value < low or (open_low and value == low) or (high is not None and value > high):
        bound = f"{'>' if open_low else '>='} {low:g}" + (f" and <= {high:g}" if high is not None else "")
        raise ConfigError(f"{PATH}.{name} = {value!r} is not valid: a number {bound}")
    return float(value)


def _one_of(value: Any, name: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise ConfigError(f"{PATH}.{name} = {value!r} is unknown: {suggest(str(value), known)}")
    return str(value)
