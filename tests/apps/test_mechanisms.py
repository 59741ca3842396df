from dataclasses import dataclass
from typing import ClassVar

import pytest

from bouton.apps.mechanisms import details, overview
from bouton.apps.options import terminal
from bouton.cli.main import main
from bouton.mechanisms import Mechanism, Params, choice, flag, mechanisms, real


class Toy(Mechanism):
    """Not registered."""

    @dataclass(frozen=True)
    class Params(Params):
        tau: float = real(6.0, "decay [fast]", unit="tokens", low=0.1)
        rule: str = choice("a", ("a", "b"), "which rule")
        free: float | None = real(None, "anything")
        on: bool = flag(False, "whether")

    name = "toy"
    summary = "a toy [not markup]"
    source = "Nobody 2001"
    sockets = ("activation", "branch")
    state = "x (B, T)"
    neutral: ClassVar = {"tau": 0.5}
    skips: ClassVar = {"causal": "looks ahead on purpose"}
    vital_names: ClassVar = {"pulse": "beats per token"}


def text_of(renderable: object) -> str:
    console = terminal()
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_the_table_has_every_mechanism(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mechanisms"]) == 0
    out = capsys.readouterr().out
    for name, cls in mechanisms().items():
        assert name in out and all(socket in out for socket in cls.sockets)


def test_details_of_every_mechanism_show_all_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    for name, cls in mechanisms().items():
        assert main(["mechanisms", name]) == 0
        out = capsys.readouterr().out
        assert all(f"mechanism.{name}.{parameter}" in out for parameter in cls.Params.specs())


def test_details_show_what_the_class_says() -> None:
    text = text_of(details(Toy))
    for said in (
        "a toy [not markup]",
        "Nobody 2001",
        "activation, branch",
        "x (B, T)",
        "tau=0.5",
        "decay [fast]",
        "tokens",
        ">= 0.1",
        "a or b",
        "true or false",
        "null",
        "looks ahead on purpose",
        "beats per token",
    ):
        assert said in text, said


def test_overview_escapes_markup() -> None:
    assert "[not" in text_of(overview({"toy": Toy}))


def test_an_unknown_mechanism_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mechanisms", "presin"]) == 1
    assert "did you mean 'presyn'" in capsys.readouterr().err
