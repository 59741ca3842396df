from __future__ import annotations

import math
from typing import Any

import pytest
import standins
from omegaconf import OmegaConf

from bouton.errors import ConfigError
from bouton.training.schedules import SCHEDULES, build_schedule


def test_cosine() -> None:
    f = build_schedule({"name": "cosine", "warmup_steps": 10, "min_lr_ratio": 0.1}, 110)
    assert [f(0), f(4), f(9)] == pytest.approx([0.1, 0.5, 1.0])
    assert [f(10), f(60), f(110), f(500)] == pytest.approx([1.0, 0.55, 0.1, 0.1])


@pytest.mark.parametrize(("shape", "middle"), [("linear", 0.5), ("sqrt", 1 - math.sqrt(0.5)), ("cosine", 0.5)])
def test_wsd(shape: str, middle: float) -> None:
    f = build_schedule(
        {"name": "wsd", "warmup_steps": 0.1, "decay_steps": 20, "min_lr_ratio": 0.0, "shape": shape}, 100
    )
    assert [f(0), f(9), f(10), f(80)] == pytest.approx([0.1, 1, 1, 1])
    assert [f(90), f(100)] == pytest.approx([middle, 0.0], abs=1e-12)


def test_wsd_before_the_decay_does_not_depend_on_the_length() -> None:
    short, long = (
        build_schedule({"name": "wsd", "warmup_steps": 5, "decay_steps": 10, "min_lr_ratio": 0.0}, n) for n in (50, 500)
    )
    assert [short(s) for s in range(40)] == [long(s) for s in range(40)]


def test_constant_without_warm_up_begins_at_the_full_rate() -> None:
    f = build_schedule({"name": "constant", "warmup_steps": 0}, 10)
    assert [f(s) for s in range(20)] == [1.0] * 20


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_shipped_schedules_build_and_stay_in_range(name: str) -> None:
    config: Any = OmegaConf.to_container(OmegaConf.load(standins.CONF / "schedule" / f"{name}.yaml"))
    f = build_schedule(config, 300)
    assert all(0 <= f(s) <= 1 for s in range(310)) and f(0) > 0 and max(map(f, range(300))) == 1.0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "linear"}, r"schedule\.name = 'linear' is unknown"),
        ({"name": "cosine", "warmup": 3}, r"schedule\.warmup is unknown to 'cosine'; did you mean 'warmup_steps'"),
        ({"name": "cosine", "warmup_steps": -1}, r"schedule\.warmup_steps = -1 is not valid"),
        ({"name": "cosine", "warmup_steps": 101}, r"exceeds trainer\.max_steps = 100"),
        ({"name": "cosine", "min_lr_ratio": 2}, r"schedule\.min_lr_ratio = 2 is not valid"),
        ({"name": "wsd", "shape": "round"}, r"schedule\.shape = 'round' is unknown"),
        ({"name": "wsd", "warmup_steps": 60, "decay_steps": 60}, r"exceed trainer\.max_steps"),
    ],
)
def test_bad_fields_are_named(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_schedule(config, 100)
