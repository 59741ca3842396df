"""The search space of any mechanism, from its own table of parameters; a YAML may narrow and group it.

A table tells what is valid, which can be much more than what is worth trying. Without a YAML a number is searched:

* on a log scale within one decade to each side of its default, on a logit scale within 2 nats;
* on a linear scale over its whole valid range, or, where that has an open end, as far from its default as the default
  is from 0 (at least 1);
* an integer within a factor of 4, on a log scale where it is positive;

all cut to what is valid, and to what the parameters' own ``check`` accepts beside the others' defaults. A number whose
default is null and whose range has an open end is left alone, and so is one of which nothing but the start is accepted
there. Options that ``check`` mostly refuses once the numbers move are left out.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bouton.errors import ConfigError, suggest
from bouton.mechanisms import registry
from bouton.mechanisms.parameters import Params, Spec
from bouton.sweeps.axes import Axis

FIELDS = ("groups", "ranges", "fixed")
_RANGE = ("low", "high", "scale", "options", "default")
_DRAWS = 64


def mechanism_axes(name: str, narrowing: Mapping[str, Any] | None, current: Mapping[str, Any]) -> list[Axis]:
    """The axes of mechanism ``name``.

    Args:
        name: a registered mechanism.
        narrowing: ``sweep.<name>``: ``groups`` (group -> parameters), ``ranges`` (parameter -> low, high, scale,
            options, default) and ``fixed`` (parameters that keep their value); None for the derived space.
        current: the mechanism's parameters in the configuration; the search begins there.

    Raises:
        ConfigError: ``narrowing`` names an unknown parameter, or a range outside what is valid.
    """
    params = registry.get(name).Params
    groups, ranges, fixed = _read(f"sweep.{name}", narrowing or {}, params)
    axes: list[Axis] = []
    for parameter, spec in params.specs().items():
        if parameter in fixed:
            continue
        key, given = f"mechanism.{name}.{parameter}", ranges.get(parameter, {})
        default = given.get("default", current.get(parameter, params.defaults()[parameter]))
        axis = _narrowed(key, spec, given, default) if given else _derived(key, spec, default)
        if axis is None:
            continue
        if given:
            _check_valid(f"sweep.{name}.ranges.{parameter}", axis, spec)
        elif axis.kind != "categorical":
            accepted = _accepted_range(axis, params, {**params.defaults(), **current}, parameter)
            if accepted is None:
                continue
            axis = accepted
        axes.append(replace(axis, group=groups.get(parameter, _natural_group(spec))))
    return _accepted_options(name, axes, params, {**params.defaults(), **current}, given=set(ranges))


def refusal(values: Mapping[str, Any], mechanisms: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Why the mechanisms' own checks refuse ``values`` (configuration path -> value); None if they do not.

    Args:
        mechanisms: mechanism -> its parameters in the configuration.
    """
    for name, current in mechanisms.items():
        prefix = f"mechanism.{name}."
        changed = {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}
        try:
            registry.get(name).Params.from_config({**current, **changed}, f"mechanism.{name}")
        except ConfigError as error:
            return str(error)
    return None


def _natural_group(spec: Spec) -> str:
    return "kinetics" if spec.kind == "real" else "structure"


# -- what the table says ---------------------------------------------------------------------------------------------


def _derived(key: str, spec: Spec, default: Any) -> Axis | None:
    """The axis of a parameter that nobody narrowed; None if its table gives no range."""
    if spec.kind == "flag":
        return Axis(key, "categorical", options=(False, True), default=default)
    if spec.kind == "choice":
        return Axis(key, "categorical", options=spec.options, default=default) if len(spec.options) > 1 else None
    bounds = _integer_bounds(spec, default) if spec.kind == "integer" else _real_bounds(spec, default)
    if bounds is None or not bounds[0] < bounds[1]:
        return None
    return Axis(key, spec.kind, bounds[0], bounds[1], bounds[2], default=default)


def _integer_bounds(spec: Spec, default: int | None) -> tuple[float, float, str] | None:
    if default is None:
        return None if spec.low is None or spec.high is None else (spec.low, spec.high, "linear")
    reach = max(abs(default), 1)
    low = math.ceil(default / 4) if default > 0 else default - 4 * reach
    high = default * 4 if default > 0 else default + 4 * reach
    low = low if spec.low is None else max(low, int(spec.low))
    high = high if spec.high is None else min(high, int(spec.high))
    return low, high, "log" if low >= 1 else "linear"


def _real_bounds(spec: Spec, default: float | None) -> tuple[float, float, str] | None:
    low, high = spec.low, spec.high
    if default is None and (low is None or high is None):
        return None
    if spec.scale == "log" and default is not None and default > 0:
        wide = (default / 10, default * 10)
    elif spec.scale == "logit" and default is not None and 0 < default < 1:
        odds = math.log(default / (1 - default))
        wide = (1 / (1 + math.exp(2 - odds)), 1 / (1 + math.exp(-2 - odds)))
    else:
        reach = max(abs(default or 0.0), 1.0)
        wide = (
            low if low is not None and high is not None else (default or 0.0) - reach,
            high if low is not None and high is not None else (default or 0.0) + reach,
        )
    begin = wide[0] if low is None else max(wide[0], low)
    end = wide[1] if high is None else min(wide[1], high)
    scale = spec.scale if spec.scale == "linear" or begin > 0 else "linear"
    inside = 1e-3 * (end - begin)
    begin = begin + inside if spec.low_open and begin == low else begin
    end = end - inside if spec.high_open and end == high else end
    return _rounded(begin), _rounded(end), scale


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _accepted_range(axis: Axis, params: type[Params], others: Mapping[str, Any], name: str) -> Axis | None:
    """The axis with both ends drawn in, by bisection, to what ``Params.check`` takes beside the other values.

    None where it takes nothing but the start: a parameter that has no effect beside them cannot be searched.
    """
    if not _accepts(params, {**others, name: axis.start}):
        return axis
    start = axis.encode(axis.start)[0]
    ends = [axis.low, axis.high]
    for index, end in enumerate((0.0, 1.0)):
        if _accepts(params, {**others, name: ends[index]}):
            continue
        good, bad = start, end
        for _ in range(30):
            middle = (good + bad) / 2
            good, bad = (middle, bad) if _accepts(params, {**others, name: axis.decode([middle])}) else (good, middle)
        ends[index] = axis.decode([good])
    searchable = any(_accepts(params, {**others, name: value}) for value in ends if value != axis.start)
    return replace(axis, low=ends[0], high=ends[1]) if ends[0] < ends[1] and searchable else None


def _accepted_options(
    name: str, axes: list[Axis], params: type[Params], current: Mapping[str, Any], given: set[str]
) -> list[Axis]:
    """Without the options that most draws of the numbers do not go with."""
    draw = random.Random(0)
    prefix = f"mechanism.{name}."
    kept = []
    for axis in axes:
        parameter = axis.key.removeprefix(prefix)
        if axis.kind == "categorical" and parameter not in given:
            options = []
            for option in axis.options:
                taken = 0
                for _ in range(_DRAWS):
                    others = {
                        a.key.removeprefix(prefix): a.from_unit(draw.random()) for a in axes if a.kind != "categorical"
                    }
                    taken += _accepts(params, {**current, **others, parameter: option})
                if 2 * taken >= _DRAWS:
                    options.append(option)
            if len(options) < 2:
                continue
            axis = replace(axis, options=tuple(options))
        kept.append(axis)
    return kept


def _accepts(params: type[Params], values: Mapping[str, Any]) -> bool:
    try:
        params(**values)
    except ConfigError:
        return False
    return True


# -- what the YAML says ----------------------------------------------------------------------------------------------


def _read(
    path: str, narrowing: Mapping[str, Any], params: type[Params]
) -> tuple[dict[str, str], dict[str, Mapping[str, Any]], set[str]]:
    for name in narrowing:
        if name not in FIELDS:
            raise ConfigError(f"{path}.{name} is unknown: {suggest(str(name), FIELDS)}")
    specs = params.specs()
    groups: dict[str, str] = {}
    for group, members in (narrowing.get("groups") or {}).items():
        for parameter in members:
            _known(f"{path}.groups.{group}", parameter, specs)
            if groups.setdefault(parameter, group) != group:
                raise ConfigError(
                    f"{path}.groups: {parameter} is in {groups[parameter]} and in {group}: keep it in one"
                )
    ranges: dict[str, Mapping[str, Any]] = {}
    for parameter, given in (narrowing.get("ranges") or {}).items():
        _known(f"{path}.ranges", parameter, specs)
        for name in given:
            if name not in _RANGE:
                raise ConfigError(f"{path}.ranges.{parameter}.{name} is unknown: {suggest(str(name), _RANGE)}")
        ranges[parameter] = given
    fixed = set(narrowing.get("fixed") or ())
    for parameter in fixed:
        _known(f"{path}.fixed", parameter, specs)
        if parameter in ranges:
            raise ConfigError(f"{path}: {parameter} has a range and is fixed: keep one of the two")
    return groups, ranges, fixed


def _known(path: str, parameter: str, specs: Mapping[str, Spec]) -> None:
    if parameter not in specs:
        raise ConfigError(f"{path}: parameter '{parameter}' is unknown: {suggest(str(parameter), specs)}")


def _narrowed(key: str, spec: Spec, given: Mapping[str, Any], default: Any) -> Axis | None:
    if given.get("options") is not None:
        return Axis(key, "categorical", options=tuple(given["options"]), default=default)
    derived = _derived(key, spec, default)
    if derived is not None and derived.kind == "categorical":
        return derived
    low = given.get("low", derived.low if derived is not None else spec.low)
    high = given.get("high", derived.high if derived is not None else spec.high)
    if low is None or high is None:
        raise ConfigError(f"sweep: {key} has no {'low' if low is None else 'high'} end: name it in its range")
    scale = given.get("scale", derived.scale if derived is not None else spec.scale)
    return Axis(key, spec.kind, low, high, scale, default=default)


def _check_valid(path: str, axis: Axis, spec: Spec) -> None:
    for value in axis.options if axis.kind == "categorical" else (axis.low, axis.high):
        try:
            spec.accept(value)
        except (ValueError, TypeError):
            raise ConfigError(f"{path}: {value!r} is not valid: {spec.doc} must be {spec.valid()}") from None
