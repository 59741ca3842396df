"""The space of any registered mechanism comes from its own table; a YAML narrows and groups it."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from omegaconf import OmegaConf

from bouton.config.paths import conf_dir
from bouton.errors import ConfigError
from bouton.mechanisms import Mechanism, Params, registry
from bouton.mechanisms.parameters import choice, flag, integer, real
from bouton.sweeps.derive import mechanism_axes, refusal


def narrowing(name: str) -> dict[str, Any] | None:
    path = conf_dir() / "sweep" / f"{name}.yaml"
    return OmegaConf.to_container(OmegaConf.load(path))[name] if path.exists() else None  # type: ignore[return-value,index,call-overload]


@pytest.mark.parametrize("name", sorted(registry.mechanisms()))
@pytest.mark.parametrize("narrowed", [False, True])
def test_every_registered_mechanism_has_a_space_of_valid_values(name: str, narrowed: bool) -> None:
    params = registry.get(name).Params
    axes = mechanism_axes(name, narrowing(name) if narrowed else None, params.defaults())
    assert axes
    draw = random.Random(0)
    taken = 0
    for _ in range(100):
        values = {axis.key: axis.from_unit(draw.random()) for axis in axes}
        for axis in axes:
            spec = params.specs()[axis.key.rpartition(".")[2]]
            spec.accept(values[axis.key])
        taken += refusal(values, {name: params.defaults()}) is None
    assert taken >= 50
    for axis in axes:  # both ends and the start alone, beside the others' defaults
        default = params.defaults()[axis.key.rpartition(".")[2]]
        if default is not None and not narrowed:
            assert axis.start == default
        for u in (0.0, 1.0):
            assert refusal({axis.key: axis.from_unit(u)}, {name: params.defaults()}) is None


@dataclass(frozen=True)
class ToyParams(Params):
    decay: float = real(10.0, "decay", low=0.1, high=1e6, scale="log")
    share: float = real(0.5, "share", low=0, high=1, low_open=True, high_open=True, scale="logit")
    gain: float = real(0.0, "gain", low=0)
    free: float | None = real(None, "free")
    count: int = integer(8, "count", low=1, high=12)
    rule: str = choice("a", ("a", "b", "c"), "rule")
    fast: bool = flag(True, "fast")

    def check(self) -> None:
        if self.rule == "b" and self.gain != 0:
            raise ConfigError("gain has no effect with rule b")
        if self.decay > 50:
            raise ConfigError("decay is too long here")


class Toy(Mechanism):
    name: ClassVar[str] = "toy"
    summary: ClassVar[str] = "of a test"
    Params: ClassVar[type[Params]] = ToyParams


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(registry, "_registry", {**registry.mechanisms(), "toy": Toy})
    return ToyParams.defaults()


def test_derivation(toy: dict[str, Any]) -> None:
    axes = {axis.key.removeprefix("mechanism.toy."): axis for axis in mechanism_axes("toy", None, toy)}
    assert set(axes) == {"decay", "share", "gain", "count", "rule", "fast"}  # `free` has neither range nor default
    decay, share, gain, count = axes["decay"], axes["share"], axes["gain"], axes["count"]
    assert decay.low == 1.0 and decay.scale == "log"
    assert decay.high == pytest.approx(50, rel=1e-6) and decay.high <= 50  # as far as `check` goes
    assert share.scale == "logit" and share.low == pytest.approx(0.119203) and share.high == pytest.approx(0.880797)
    assert (gain.low, gain.high, gain.scale) == (0.0, 1.0, "linear")
    assert (count.kind, count.low, count.high, count.scale) == ("integer", 2, 12, "log")
    assert axes["rule"].options == ("a", "c")  # b is refused as soon as `gain` moves
    assert axes["fast"].options == (False, True)
    assert gain.group == "kinetics" and count.group == "structure"
    moved = {axis.key.rpartition(".")[2]: axis.start for axis in mechanism_axes("toy", None, {**toy, "decay": 20.0})}
    assert moved["decay"] == 20.0  # the search begins where the configuration is


def test_narrowing(toy: dict[str, Any]) -> None:
    given = {
        "groups": {"time": ["decay"]},
        "ranges": {"decay": {"high": 30}, "free": {"low": -1, "high": 1, "default": 0.5}, "count": {"options": [2, 4]}},
        "fixed": ["rule", "share"],
    }
    axes = {axis.key.removeprefix("mechanism.toy."): axis for axis in mechanism_axes("toy", given, toy)}
    assert set(axes) == {"decay", "gain", "free", "count", "fast"}
    assert (axes["decay"].low, axes["decay"].high, axes["decay"].group) == (1.0, 30, "time")
    assert (axes["free"].low, axes["free"].start) == (-1, 0.5)
    assert axes["count"].kind == "categorical" and axes["count"].options == (2, 4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"range": {}}, r"sweep\.toy\.range is unknown: did you mean 'ranges'"),
        ({"ranges": {"decai": {}}}, r"parameter 'decai' is unknown: did you mean 'decay'"),
        ({"ranges": {"decay": {"lo": 1}}}, r"sweep\.toy\.ranges\.decay\.lo is unknown: did you mean 'low'"),
        ({"ranges": {"decay": {"low": 0.01}}}, r"0\.01 is not valid: decay must be a number >= 0\.1"),
        ({"ranges": {"free": {"low": 1}}}, r"has no high end"),
        ({"groups": {"x": ["gain"], "y": ["gain"]}}, r"gain is in x and in y"),
        ({"ranges": {"gain": {"high": 3}}, "fixed": ["gain"]}, r"gain has a range and is fixed"),
    ],
)
def test_bad_narrowing_is_one_line(toy: dict[str, Any], given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        mechanism_axes("toy", given, toy)
    assert "\n" not in str(caught.value)
