"""The command ``bouton dashboard``."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from bouton.cli.main import main


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({"seed": 0, "mechanism": {}, "model": {}, "logger": {}}))
    (folder / "metrics.csv").write_text("step,train/loss\n1,2.0\n2,1.0\n")
    return folder


@pytest.mark.parametrize("words", [["run={}"], ["{}"]])
def test_it_writes_a_page_and_says_where(run: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dashboard", *(word.format(run) for word in words)]) == 0
    assert capsys.readouterr().out == f"dashboard: {run}/dashboard.html\n"
    assert "train/loss" in (run / "dashboard.html").read_text()


def test_out_and_open(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: not shown.append(url))
    assert main(["dashboard", "--open", f"run={run}", f"out={tmp_path}/page.html"]) == 0
    assert shown == [(tmp_path / "page.html").as_uri()]
    assert not (run / "dashboard.html").exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["run=nowhere"], "error: folder = nowhere: there is no such folder"),
        (["{}", "to=wandbb"], "error: to = wandbb is unknown: did you mean 'wandb'"),
        (["{}", "to=wandb"], "error: to = wandb: these runs were not logged to W&B"),
        (["{}", "to=wandb", "out=x"], "error: out = x has no effect with to = wandb"),
        (["{}", "media=-1"], "error: media = -1 is not valid: an integer >= 0"),
        (["{}", "open=maybe"], "error: open = maybe is not valid: yes or no"),
        ([], "error: run=... is missing"),
    ],
)
def test_errors_are_one_line(run: Path, words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dashboard", *(word.format(run) for word in words)]) == 1
    err = capsys.readouterr().err
    assert err.startswith(line) and err.count("\n") == 1
