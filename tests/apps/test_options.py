from dataclasses import dataclass

import pytest

from bouton.apps.options import option, parse
from bouton.errors import ConfigError


@dataclass
class Options:
    run: str = option("a folder")
    count: int = option("how many", 3)
    ratio: float = option("how much", 0.5)
    name: str | None = option("perhaps a name", None)
    stop: tuple[str, ...] = option("several", ())


def read(*words: str, positional: str | None = None) -> Options:
    found = parse(Options, words, usage="test", positional=positional)
    assert found is not None
    return found


def test_values_have_the_type_of_their_field() -> None:
    found = read("run=a=b", "count=-2", "ratio=1e-3", "name=", "stop=x", "stop=y z")
    assert found == Options("a=b", -2, 1e-3, "", ("x", "y z"))


def test_defaults() -> None:
    assert read("run=x") == Options("x", 3, 0.5, None, ())


def test_a_first_word_may_stand_for_a_field() -> None:
    assert read("folder", "count=1", positional="run").run == "folder"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run=x", "cuont=1"], r"'cuont' is unknown: did you mean 'count'\? known: count, name, ratio, run, stop"),
        (["run=x", "count=1.5"], r"count = '1\.5' is not valid: it must be an integer"),
        (["run=x", "ratio=half"], r"ratio = 'half' is not valid: it must be a number"),
        (["run=x", "run=y"], r"run is given twice: x and y"),
        (["count=1"], r"run=\.\.\. is missing: a folder"),
        (["run=x", "count"], r"'count' is not of the form key=value"),
    ],
)
def test_mistakes_are_one_line(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        read(*words)
    assert "\n" not in str(caught.value)


def test_help_shows_every_key_and_runs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(Options, ["--help"], usage="bouton test") is None
    text = capsys.readouterr().out
    assert "usage: bouton test" in text
    for key, doc in (("run", "(required)"), ("count", "how many"), ("ratio", "0.5"), ("stop", "several")):
        assert key in text and doc in text
