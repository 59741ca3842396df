"""Learning-rate schedules: pure functions of the optimizer step, so that a resumed run needs no schedule state."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from bouton.errors import ConfigError, suggest

Schedule = Callable[[int], float]  # optimizer step (0 = the first) -> factor on each group's learning rate


def constant(*, max_steps: int, warmup_steps: float = 0) -> Schedule:
    """Linear warm-up, then the full rate."""
    warmup = _steps("warmup_steps", warmup_steps, max_steps)
    return lambda step: _warm(step, warmup)


def cosine(*, max_steps: int, warmup_steps: float = 0, min_lr_ratio: float = 0.0) -> Schedule:
    """Linear warm-up, then half a cosine down to ``min_lr_ratio`` at ``max_steps`` (Loshchilov and Hutter 2017)."""
    warmup = _steps("warmup_steps", warmup_steps, max_steps)
    floor = _ratio(min_lr_ratio)

    def factor(step: int) -> float:
        if step < warmup:
            return _warm(step, warmup)
        progress = min(1.0, (step - warmup) / max(1, max_steps - warmup))
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor


def wsd(
    *,
    max_steps: int,
    warmup_steps: float = 0,
    decay_steps: float = 0.2,
    min_lr_ratio: float = 0.0,
    shape: str = "linear",
) -> Schedule:
    """Warm-up, stable, decay (Hu et al. 2024, MiniCPM): only the last ``decay_steps`` depend on ``max_steps``.

    ``shape`` of the decay over its progress p: ``linear`` 1 - p, ``sqrt`` 1 - sqrt(p) (Haegele et al. 2024), or half a
    ``cosine``.
    """
    shapes: dict[str, Callable[[float], float]] = {
        "linear": lambda p: 1 - p,
        "sqrt": lambda p: 1 - math.sqrt(p),
        "cosine": lambda p: 0.5 * (1 + math.cos(math.pi * p)),
    }
    if shape not in shapes:
        raise ConfigError(f"schedule.shape = '{shape}' is unknown; {suggest(str(shape), shapes)}")
    warmup = _steps("warmup_steps", warmup_steps, max_steps)
    decay = _steps("decay_steps", decay_steps, max_steps)
    floor = _ratio(min_lr_ratio)
    if warmup + decay > max_steps:
        raise ConfigError(
            f"schedule.warmup_steps ({warmup}) + schedule.decay_steps ({decay}) exceed trainer.max_steps ({max_steps})"
        )

    def factor(step: int) -> float:
        if step < warmup:
            return _warm(step, warmup)
        progress = min(1.0, max(0.0, (step - (max_steps - decay)) / max(1, decay)))
        return floor + (1 - floor) * shapes[shape](progress)

    return factor


SCHEDULES: dict[str, Callable[..., Schedule]] = {"constant": constant, "cosine": cosine, "wsd": wsd}


def build_schedule(config: Mapping[str, Any], max_steps: int) -> Schedule:
    """The schedule that ``config`` (``name`` and its own fields) describes for a run of ``max_steps`` steps.

    A number of steps below 1 is a fraction of ``max_steps``.

    Raises:
        ConfigError: an unknown schedule or field, or a value out of range.
    """
    fields = dict(config)
    name = fields.pop("name", None)
    if name not in SCHEDULES:
        raise ConfigError(f"schedule.name = '{name}' is unknown; {suggest(str(name), SCHEDULES)}")
    function = SCHEDULES[name]
    known = set(function.__kwdefaults__ or {})
    for field in fields:
        if field not in known:
            raise ConfigError(f"schedule.{field} is unknown to '{name}'; {suggest(field, known)}")
    return function(max_steps=max_steps, **fields)


def _warm(step: int, warmup: int) -> float:
    # The first step already learns: a rate of exactly 0 would waste it.
    return min(1.0, (step + 1) / warmup) if warmup else 1.0


def _steps(field: str, value: float, max_steps: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or not math.isfinite(value):
        raise ConfigError(
            f"schedule.{field} = {value!r} is not valid: a number of steps, or a fraction of them below 1"
        )
    steps = round(value * max_steps) if value < 1 else int(value)
    if steps > max_steps:
        raise ConfigError(f"schedule.{field} = {value} exceeds trainer.max_steps = {max_steps}")
    return steps


def _ratio(value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ConfigError(f"schedule.min_lr_ratio = {value!r} is not valid: a number between 0 and 1")
    return float(value)
