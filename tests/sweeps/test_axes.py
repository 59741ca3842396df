"""Values from the unit interval and back, and what a whole space makes of a point."""

from __future__ import annotations

from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from bouton.errors import ConfigError
from bouton.sweeps.axes import Axis
from bouton.sweeps.space import Space, word

AXES = (
    Axis("a", low=-3.0, high=5.0),
    Axis("b", low=1e-4, high=1e2, scale="log"),
    Axis("c", low=0.01, high=0.999, scale="logit"),
    Axis("d", "integer", 1, 64, "log"),
    Axis("e", "integer", -2, 3),
    Axis("f", "categorical", options=(False, True)),
    Axis("g", "categorical", options=("x", "y", "z")),
)


@given(st.lists(st.floats(0, 1), min_size=9, max_size=9))
def test_every_point_has_valid_values_that_encode_to_themselves(point: list[float]) -> None:
    space = Space(AXES)
    assert space.dimension == 9
    values = space.decode(point)
    for axis in AXES:
        value = values[axis.key]
        if axis.kind == "categorical":
            assert value in axis.options
        else:
            assert axis.low <= value <= axis.high
            assert isinstance(value, int if axis.kind == "integer" else float)
    assert _close(space.decode(space.encode(values)), values)


def _close(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return all(a[k] == pytest.approx(b[k], rel=1e-9) if isinstance(b[k], float) else a[k] == b[k] for k in b)


def test_ends_and_shares() -> None:
    a, b, _, d, e, f, g = AXES
    assert (a.decode([0]), a.decode([1]), b.decode([0.5])) == (-3.0, 5.0, pytest.approx(0.1))
    assert [e.decode([u]) for u in (0, 0.99 / 6, 1.01 / 6, 1)] == [-2, -2, -1, 3]  # every integer gets a sixth
    assert {d.decode([i / 10000]) for i in range(10001)} == set(range(1, 65))
    assert [f.from_unit(u) for u in (0, 0.49, 0.5, 1)] == [False, False, True, True]
    assert [g.from_unit(u) for u in (0, 0.34, 0.67, 1)] == ["x", "y", "z", "z"]
    assert g.decode([0.2, 0.9, 0.3]) == "y"  # no option lies between two others


def test_a_default_outside_the_range_is_drawn_in() -> None:
    assert Axis("a", low=0.0, high=1.0, default=7).start == 1.0
    assert Axis("a", low=0.0, high=1.0, default=None).start == 0.5
    assert Axis("a", "categorical", options=("x", "y"), default="z").start == "x"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"low": 1.0, "high": 1.0}, "is empty"),
        ({"low": 0.0, "scale": "log"}, "a log scale needs low > 0"),
        ({"low": 0.0, "scale": "logit"}, "logit scale needs"),
        ({"scale": "lag"}, "did you mean 'log'"),
        ({"kind": "reel"}, "did you mean 'real'"),
        ({"kind": "categorical", "options": ("x",)}, "needs two or more"),
    ],
)
def test_bad_axes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Axis("optimizer.lr", **options)


@pytest.mark.parametrize("value", [None, True, 3, 1e-7, -2.5, "adamw", "true", "3", "a b", "it's", "x=1,y", "a+b"])
def test_words_are_read_back_by_hydra(value: Any) -> None:
    (parsed,) = OverridesParser.create().parse_overrides([word("key", value)])
    read = parsed.value()
    assert getattr(read, "text", read) == value
    assert type(getattr(read, "text", read)) is type(value)
