"""A domain from the command line: its run folder, its refusals, and the options that its file gives."""

import csv
import dataclasses
import json
from pathlib import Path

import pytest
import yaml

from bouton import compose, evidence, substrate
from bouton.cli.train import main
from bouton.config import conf_dir
from bouton.domains import DOMAINS, Recorder, domain
from bouton.errors import CheckpointError, ConfigError
from bouton.runs import load

pytest.importorskip("bouton_kernels")


@pytest.mark.parametrize("name", sorted(DOMAINS))
def test_the_file_of_a_domain_gives_its_defaults(name: str) -> None:
    given = yaml.safe_load((conf_dir() / "domain" / f"{name}.yaml").read_text())
    made = domain(given)
    assert made.name == name
    fields = {field.name: field.default for field in dataclasses.fields(made.Settings)}
    assert {key: value for key, value in given.items() if key != "name"} == fields
    assert compose(f"domain={name}").domain.name == name


def test_a_wrong_field_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"domain\.name = 'tictac' is unknown: did you mean 'tictactoe'"):
        domain({"name": "tictac"})
    with pytest.raises(ConfigError, match=r"domain\.games = 0"):
        domain({"name": "tictactoe", "games": 0})
    with pytest.raises(ConfigError, match=r"domain\.gmaes"):
        domain({"name": "tictactoe", "gmaes": 3})


def test_a_run_leaves_a_table_a_graph_and_a_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    words = ["experiment=substrate/sentences", "domain.epochs=3", "domain.splits=1", f"run_dir={folder}"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "counts of 3-grams" in printed
    summary = json.loads((folder / "summary.json").read_text())
    rows = list(csv.DictReader((folder / "results.csv").open()))
    assert rows[0]["method"] == "graph" and summary["status"] == "finished"
    assert summary["final"]["val_error"] == pytest.approx(1 - float(rows[0]["held out"]))
    assert len(list(csv.DictReader((folder / "metrics.csv").open()))) == 3
    graph = substrate.open(folder / "graph.bouton")
    assert graph.edges == summary["costs"]["parameters"] > 0
    with pytest.raises(CheckpointError, match=r"has no model, but graph\.bouton"):
        _ = load(folder).model
    assert main(words) == 1
    assert "already holds a run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("mechanism=presyn", "mechanism = presyn is not valid"),
        ("ckpt_path=last", "ckpt_path = last is not valid"),
        ("trainer.devices=2", "trainer.devices = 2 is not valid"),
    ],
)
def test_what_a_domain_cannot_do_is_one_line(
    word: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["experiment=substrate/sentences", f"run_dir={tmp_path / 'run'}", word]) == 1
    told = capsys.readouterr().err.strip()
    assert says in told and len(told.splitlines()) == 1


def test_reports_know_that_it_is_an_error_and_no_loss(tmp_path: Path) -> None:
    words = ["experiment=substrate/sentences", "domain.epochs=2", "domain.splits=1"]
    for seed, eta in ((0, 0.1), (0, 0.3), (1, 0.1), (1, 0.3)):
        assert main([*words, f"seed={seed}", f"domain.eta={eta}", f"run_dir={tmp_path / f'{seed}_{eta}'}"]) == 0
    frame = evidence.load(tmp_path)
    assert frame["status"].eq("finished").all() and frame["seed"].nunique() == 2
    study = evidence.analyse(frame)
    assert study.measure.column == "final_val_error" and study.measure.unit == "share of examples"
    assert set(study.arms) == {"none domain.eta=0.1", "none domain.eta=0.3"}


def test_a_run_that_was_killed_is_unfinished_and_can_begin_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Recorder):
        def log(self, step: int, **numbers: float) -> None:
            super().log(step, **numbers)
            if step == 2:
                raise KeyboardInterrupt

    folder = tmp_path / "run"
    words = ["experiment=substrate/sentences", "domain.epochs=4", "domain.splits=1", f"run_dir={folder}"]
    with monkeypatch.context() as patched:
        patched.setattr("bouton.domains.run.Recorder", Killed)
        assert main(words) != 0
    left = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "metrics.csv"} <= left and not left & {"summary.json", "results.csv", "graph.bouton"}
    assert list(evidence.load(folder)["status"]) == ["unfinished"]
    assert main(words) == 0
    assert len(list(csv.DictReader((folder / "metrics.csv").open()))) == 4
