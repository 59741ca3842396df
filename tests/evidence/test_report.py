"""The report of synthetic runs: what it says is what was put in, and it needs no other file."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from synthetic import make_run, make_study

from bouton.cli.main import main
from bouton.evaluation.base import Result
from bouton.evaluation.store import results_folder, save_result
from bouton.evidence import analyse, load, report
from bouton.evidence.document import Document, Paragraph, Table

EFFECTS = {"none": 0.0, "presyn": -0.05, "hebb": 0.05, "septin": 0.0, "hebb+presyn": -0.1}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("study") / "grid"
    costs = {"presyn": {"slower": 1.3, "flops": 1.02}, "hebb": {"slower": 3.0}}
    make_study(root, EFFECTS, range(6), noise=0.003, costs=costs, controls=True)
    crashed = make_run(root / "septin_seed7", "septin", 7, 2.0)
    (crashed / "summary.json").unlink()
    (crashed / "status.json").write_text('{"status": "crashed", "error": "the loss is not finite"}')
    (root / "hebb_seed5" / "summary.json").unlink()
    report(root)
    return root


def test_verdicts_in_words(study: Path) -> None:
    text = (study / "report.md").read_text()
    for arm, verdict in [("presyn", "helps"), ("hebb", "hurts"), ("septin", "no detectable difference")]:
        assert f"- **{arm}: {verdict}**" in text
    assert "`septin_seed7` crashed: the loss is not finite" in text
    assert "`hebb_seed5` has not finished" in text
    assert "seed 5: hebb unfinished" in text
    assert "the baseline was run with 1.30 of its tokens at most, 3.00 are needed" in text


def test_synergy_of_the_pair(study: Path) -> None:
    (found,) = json.loads((study / "statistics.json").read_text())["synergies"]
    assert (found["first"], found["second"]) == ("hebb", "presyn")
    assert found["comparison"]["difference"] == pytest.approx(-0.1 + 0.05 - 0.05, abs=0.01)
    assert found["comparison"]["n"] == 5  # hebb did not finish with seed 5
    assert found["comparison"]["verdict"] == "helps"


def test_numbers_are_the_same_in_every_file(study: Path) -> None:
    numbers = json.loads((study / "statistics.json").read_text())["comparisons"]
    rows = pd.read_csv(study / "statistics.csv").set_index(["arm", "equal"])
    text = (study / "report.md").read_text()
    for arm, entry in numbers.items():
        one = entry["tokens"]["comparison"]
        assert rows.loc[(arm, "tokens"), "p_holm"] == pytest.approx(one["p_holm"])
        assert f"| {one['difference']:+.4f} | [{one['low']:.4f}, {one['high']:.4f}] |" in text
        assert rows.loc[(arm, "tokens"), "verdict"] == one["verdict"]


def test_html_needs_nothing_else(study: Path) -> None:
    page = (study / "report.html").read_text()
    assert len(re.findall(r'src="data:image/png;base64,', page)) == 4
    assert not re.search(r'(src|href)="(?!data:)', page)
    for name in ("forest", "curves", "pareto", "synergy"):
        assert (study / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_it_is_computed_from_the_run_folders_alone(study: Path, tmp_path: Path) -> None:
    """Only the run folders are carried to another place, without what the grid or an earlier report left."""
    moved = tmp_path / "elsewhere"
    for folder in study.iterdir():
        if folder.is_dir() and (folder / "config.yaml").exists():
            shutil.copytree(folder, moved / folder.name)
    report(moved)
    assert (moved / "statistics.csv").read_text() == (study / "statistics.csv").read_text()


def test_command(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(study), f"out={tmp_path}", "metric=val_accuracy"]) == 0
    out = capsys.readouterr().out
    assert "presyn: helps" in out and f"report: {tmp_path}/report.html" in out
    assert not (tmp_path / "figures" / "nothing.png").exists()


def test_open_shows_the_page(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: not shown.append(url))
    assert main(["report", "--open", str(study), f"out={tmp_path}"]) == 0
    assert shown == [(tmp_path / "report.html").as_uri()]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["nowhere"], "error: folder = nowhere: there is no such folder"),
        (["{}", "metric=val_los"], "error: metric = val_los is unknown: did you mean 'final_val_loss'"),
        (["{}", "baseline=hebbs"], "error: baseline = hebbs is unknown: did you mean 'hebb'"),
        (["{}", "interest=0"], "error: interest = 0.0 is not valid: a number > 0"),
        (["{}", "alpha=5"], "error: alpha = 5.0 is not valid"),
        (["{}", "open=maybe"], "error: open = maybe is not valid: yes or no"),
    ],
)
def test_errors_are_one_line(study: Path, words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", *(word.format(study) for word in words)]) == 1
    err = capsys.readouterr().err
    assert err.startswith(line) and err.count("\n") == 1


def test_no_finished_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (make_run(tmp_path / "s" / "a", "none", 0, 2.0) / "summary.json").unlink()
    assert main(["report", str(tmp_path / "s")]) == 1
    assert "none of the 1 runs has finished yet" in capsys.readouterr().err


def test_document_escapes_what_it_shows() -> None:
    document = Document("a <b>")
    document.add(Paragraph("**x** < `y|z`"), Table(("name", "n#"), (("p|q", "1"),)))
    assert "<p><strong>x</strong> &lt; <code>y|z</code></p>" in document.html()
    assert "| p\\|q | 1 |" in document.markdown(Path())


def test_evaluation_tasks_stand_beside_the_loss(study: Path, tmp_path: Path) -> None:
    study = shutil.copytree(study, tmp_path / "grid")
    runs = load(study).set_index("run")
    assert "Evaluation tasks" not in report(study).with_suffix(".md").read_text()
    rng = np.random.default_rng(0)
    expected: dict[str, dict[int, float]] = {}
    for folder in sorted(path for path in study.iterdir() if (path / "summary.json").is_file()):
        run = runs.loc[folder.name]
        value = 0.1 + 0.05 * ("presyn" in run["arm"]) + 0.01 * rng.standard_normal()
        expected.setdefault(run["arm"], {})[int(run["seed"])] = value
        facts = {"seconds": 1.0, "options": {}}
        numbers = {"ece": value, "ece_se": 0.1, "adaptive_ece": 5.0, "brier": math.nan}
        save_result(results_folder(folder, "best"), "calibration", Result(numbers=numbers), facts)
    study_now = analyse(load(study))
    assert {(one.task, one.number) for one in study_now.evaluations} == {("calibration", "ece")}
    by_arm = {one.arm: one for one in study_now.evaluations}
    assert by_arm.keys() == expected.keys()
    assert by_arm["none"].comparison is None
    for arm, base in study_now.baseline.items():
        seeds = sorted(expected[arm].keys() & expected[base].keys())
        differences = [expected[arm][seed] - expected[base][seed] for seed in seeds]
        one = by_arm[arm].comparison
        assert one is not None
        assert one.difference == pytest.approx(np.mean(differences))
        assert one.p == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)
        assert one.p_holm >= one.p
    page = report(study).with_suffix(".md").read_text()
    assert "Evaluation tasks" in page and "calibration: ece" in page and "Exploratory" in page
