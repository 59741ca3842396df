"""The command `bouton` and the errors of `train` as a user sees them."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from bouton.cli import main as cli
from bouton.cli import train


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in cli.COMMANDS)
    assert cli.main(["--help"]) == 0
    assert capsys.readouterr().out == shown


def test_unknown_command_gets_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trian"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: command 'trian' is unknown: did you mean 'train'?")
    assert error.count("\n") == 1


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_target_exists(name: str) -> None:
    module, _, function = cli.COMMANDS[name].target.partition(":")
    assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize(
    ("words", "start"),
    [
        (["mechanism=prezyn"], "error: mechanism 'prezyn' is unknown: did you mean 'presyn'?"),
        (["mechanism=[hebb,hebb]"], "error: mechanism=hebb+hebb has 'hebb' twice"),
        (["-m", "mechanism=none,prezyn"], "error: mechanism 'prezyn' is unknown: did you mean 'presyn'?"),
        (["mechanism=presyn", "mechanism.presyn.tau_c=-1"], "error: mechanism.presyn.tau_c = -1 is not valid"),
        (
            ["trainer.devices=4096", "trainer.accelerator=cpu"],
            "error: trainer.devices = 4096 is too many: this machine",
        ),
        (["trainer.devices=0"], "error: trainer.devices = 0 is not valid"),
    ],
)
def test_errors_of_train(
    words: list[str],
    start: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train.main(words) == 1
    error = capfd.readouterr().err
    assert error.startswith(start)
    assert error.count("\n") == 1
    # no folder that a later command would take for a run
    assert [path.name for path in tmp_path.glob("runs/*/*") if path.name != "multirun.yaml"] == []
