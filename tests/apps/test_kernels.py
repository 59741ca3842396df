from collections.abc import Iterator

import pytest

from bouton.apps.kernels import automatic
from bouton.cli.main import main
from bouton.mechanisms import mechanisms
from bouton.ops import backends


@pytest.fixture
def toy_op(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(backends, "_backends", dict(backends._backends))
    backends.register_backend("toy_op", "torch")
    backends.register_backend("toy_op", "rust", devices=("cpu",), why_not=lambda: "it is [Tuesday]")
    yield "toy_op"


def row_of(op: str, text: str) -> str:
    return next(line for line in text.splitlines() if op in line)


def test_every_op_of_every_mechanism_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels"]) == 0
    out = capsys.readouterr().out
    assert "kernels on cpu" in out
    for cls in mechanisms().values():
        assert all(op in out for op in cls.ops)


def test_reasons_and_the_automatic_choice_are_shown(toy_op: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["kernels", "device=cpu"])
    row = row_of(toy_op, capsys.readouterr().out)
    assert "available" in row and "it is [Tuesday]" in row and "not written for this op" in row
    assert row.rstrip(" │┃").endswith("torch")
    main(["kernels", "device=cuda"])
    assert "does not run on cuda" in row_of(toy_op, capsys.readouterr().out)


def test_what_runs_by_name_alone_says_so(toy_op: str, capsys: pytest.CaptureFixture[str]) -> None:
    backends.register_backend(toy_op, "rust", devices=("cpu",), by_name=lambda device: "untimed")
    main(["kernels", "device=cpu"])
    row = row_of(toy_op, capsys.readouterr().out)
    assert "untimed" in row and row.rstrip(" │┃").endswith("torch")


def test_auto_prefers_the_specialised_backend(toy_op: str) -> None:
    assert automatic(toy_op, "cpu") == "torch"
    backends.register_backend(toy_op, "rust", devices=("cpu",))
    assert automatic(toy_op, "cpu") == "rust"
    assert automatic(toy_op, "cpu") == backends.select(toy_op, "cpu")
