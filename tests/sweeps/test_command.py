"""What the words of a command mean."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

import bouton
from bouton.errors import ConfigError
from bouton.sweeps.command import build_space, plain_words, read_command, removals
from bouton.sweeps.settings import read_settings


def test_words_axes_and_seeds() -> None:
    command = read_command(
        [
            "model=tiny",
            "optimizer.lr=tag(log,interval(1e-4,1e-1))",
            "mechanism=presyn",
            "seed=3,5",
            "model.num_layers=2",
        ]
    )
    assert command.words == ("model=tiny", "mechanism=presyn", "model.num_layers=2")
    assert command.seeds == (3, 5)
    (axis,) = build_space(command, bouton.compose(*command.words)).axes
    assert (axis.key, axis.kind, axis.low, axis.high, axis.scale) == ("optimizer.lr", "real", 1e-4, 1e-1, "log")
    assert axis.start == 0.002  # where the configuration is


def test_kinds_of_axes() -> None:
    words = [
        "model.num_layers=int(interval(1,6))",
        "model.num_heads=1,2,4",
        "model.activation=choice(relu2,silu)",
        "model.qk_norm=true,false",
        "trainer.max_steps=range(10,13)",
    ]
    axes = {axis.key: axis for axis in build_space(read_command(words), bouton.compose()).axes}
    assert (axes["model.num_layers"].kind, axes["model.num_layers"].high) == ("integer", 6)
    assert axes["model.num_heads"].options == (1, 2, 4)
    assert axes["model.activation"].options == ("relu2", "silu")
    assert axes["model.qk_norm"].options == (True, False)
    assert [axes["trainer.max_steps"].decode([u]) for u in (0, 0.5, 1)] == [10, 11, 12]


def test_without_axes_all_parameters_of_all_mechanisms_but_those_that_are_set() -> None:
    command = read_command(["mechanism=presyn+hebb", "mechanism.presyn.tau_c=3", "seed=0"])
    keys = build_space(command, bouton.compose(*command.words)).keys
    assert "mechanism.presyn.tau_c" not in keys
    assert {"mechanism.presyn.tau_rrp", "mechanism.hebb.eta"} <= set(keys)
    narrowed = read_command(["mechanism=presyn", "sweep=presyn"])
    space = build_space(narrowed, bouton.compose(*narrowed.words))
    assert set(space.groups()) == {"calcium", "vesicles", "structure"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mechanism=none"], "nothing to tune: choose mechanism="),
        (["mechanism=presyn,hebb"], "mechanism takes several values, but it is a group"),
        (["seed=a,b"], r"seed = .* integers"),
        (["optimizer.lr=tag(loog,interval(1,2))"], "tags .* are not valid"),
        (["mechanism=hebb", "sweep=presyn"], r"sweep\.presyn: 'presyn' is not part .* mechanism=hebb\+presyn"),
    ],
)
def test_what_cannot_be_searched_is_one_line(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        command = read_command(words)
        build_space(command, bouton.compose(*command.words))


def test_the_plain_body_has_the_same_words_otherwise() -> None:
    command = read_command(
        ["experiment=first_run", "mechanism=presyn", "+mechanism.presyn.tau_c=3", "trainer.max_steps=5"]
    )
    words = plain_words(command)
    assert words == ["experiment=first_run", "trainer.max_steps=5", "mechanism=none"]
    assert removals(bouton.compose(*words)) == []
    assert removals(OmegaConf.create({"mechanism": {"presyn": {"tau_c": 2}}})) == ["~mechanism.presyn"]


def test_settings_are_checked() -> None:
    from bouton.config.paths import conf_dir

    shipped = OmegaConf.to_container(OmegaConf.load(conf_dir() / "hydra" / "sweeper" / "cmaes.yaml"))
    assert isinstance(shipped, dict)
    shipped.pop("_target_")
    settings = read_settings(shipped)  # type: ignore[arg-type]
    assert (settings.quality, settings.performance, settings.influential) == (0.7, 0.3, 10)
    for change, message in [
        ({"popsiz": 3}, r"hydra\.sweeper\.popsiz is unknown: did you mean 'popsize'"),
        ({"popsize": 1}, r"popsize = 1 is not valid: an integer >= 2"),
        ({"seeds": [1, 1]}, r"seeds = \[1, 1\]"),
        ({"weights": {"quality": 0, "performance": 0}}, "are both 0"),
        ({"weights": 3}, "holds quality, performance"),
        ({"costs": []}, "costs is empty"),
        ({"stagnation": {"policy": "ipopp", "patience": None, "min_delta": 0}}, "did you mean 'ipop'"),
        ({"screen": None}, "screen = null"),
        ({"hopeless": {"against": "median"}}, r"hopeless\.after is missing"),
    ]:
        with pytest.raises(ConfigError, match=message):
            read_settings({**shipped, **change})  # type: ignore[dict-item]
