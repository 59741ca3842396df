"""The runner: what is measured is written down, is not measured again, and leaves the model as it was."""

import json
import math
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import bouton
from bouton.errors import ConfigError, DataError, EvaluationError
from bouton.evaluation import Result, Task, evaluate, registry
from bouton.evaluation.options import Params
from bouton.evaluation.subject import Subject, fingerprint
from bouton.runs import Run

# Options that make every task quick.
QUICK: dict[str, dict[str, Any]] = {
    "cloze": {"items": 20},
    "needle": {"items": 4, "lengths": [16, 40]},
    "repetition": {"samples": 6, "length": 24, "prompt": 4},
    "speed": {"seconds": 0.01, "contexts": [8, 32]},
    "calibration": {"resamples": 100},
}


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> type[Task]:
    """A task that counts how often it measures."""

    class Options(Params):
        pass

    class Probe(Task):
        name = "probe"
        summary = "counts"
        calls = 0

        def measure(self, subject: Subject, options: Any) -> Result:
            type(self).calls += 1
            torch.rand(3)
            return Result({"calls": float(self.calls), "nothing": math.nan}, notes=["a note"])

    monkeypatch.setitem(registry._registry, "probe", Probe)
    return Probe


def test_a_result_is_written_read_and_not_measured_again(stories: Run, probe: Any) -> None:
    first = evaluate(stories, ["probe"])["probe"]
    assert first["numbers"]["calls"] == 1 and math.isnan(first["numbers"]["nothing"])
    written = json.loads((stories.folder / "evaluation" / "probe.json").read_text())
    assert written["numbers"] == {"calls": 1.0, "nothing": None} and written["notes"] == ["a note"]
    fresh = bouton.load(stories.folder, device="cpu", kernels="torch")
    assert fresh.evaluation["probe"]["numbers"]["calls"] == 1
    assert evaluate(fresh, ["probe"])["probe"]["numbers"]["calls"] == 1 and probe.calls == 1
    assert evaluate(fresh, ["probe"], again=True)["probe"]["numbers"]["calls"] == 2


def test_other_options_weights_or_precision_are_measured_again(stories: Run) -> None:
    seen: list[bool] = []
    for options, precision in (({}, "run"), ({}, "run"), ({"bins": 5}, "run"), ({"bins": 5}, "run")):
        evaluate(
            stories, "calibration", {"calibration": {"resamples": 100, **options}}, precision=precision,
            report=lambda label, result, fresh: seen.append(fresh),
        )  # fmt: skip
    assert seen == [True, False, True, False]
    last = bouton.load(stories.folder, "last", device="cpu", kernels="torch")
    with torch.no_grad():
        next(last.model.parameters()).add_(0.1)
    evaluate(
        last, "calibration", {"calibration": {"resamples": 100}},
        report=lambda label, result, fresh: seen.append(fresh),
    )  # fmt: skip
    assert seen[-1] and (stories.folder / "evaluation" / "last" / "calibration.json").is_file()
    assert set(last.evaluation) == {"calibration"}


def test_a_torn_result_is_measured_again(stories: Run, probe: Any) -> None:
    evaluate(stories, ["probe"])
    path = stories.folder / "evaluation" / "probe.json"
    path.write_text(path.read_text()[:40])
    (path.parent / ".probe.json.x.partial").write_text("{")
    assert stories.evaluation == {}
    assert evaluate(stories, ["probe"])["probe"]["numbers"]["calls"] == 2
    assert not list(path.parent.glob(".*.partial"))


def test_every_task_leaves_the_model_and_the_generators_as_they_are(stories: Run, recall: Run) -> None:
    for run in (stories, recall):
        model = run.model
        model.train()
        before, random_state = fingerprint(model), torch.get_rng_state()
        options = {name: o for name, o in QUICK.items() if run is stories or name == "calibration"}
        names = [
            name for name, cls in registry.tasks().items() if not cls.argument_doc and _applies(cls(), Subject(run))
        ]
        chosen = {name: o for name, o in options.items() if name in names}
        if run is recall:
            chosen["speed"] = QUICK["speed"]
        results = evaluate(run, names, chosen)
        assert set(results) == set(names) and len(names) >= 4
        assert fingerprint(model) == before
        assert torch.equal(torch.get_rng_state(), random_state)
        assert all(module.training for module in model.modules())
        assert all(p.grad is None for p in model.parameters())
        for name, result in results.items():
            assert result["numbers"], name
            for key in result["numbers"]:
                assert isinstance(result["numbers"][key], float)
            for file in result["figures"].values():
                assert (run.folder / "evaluation" / file).read_bytes().startswith(b"\x89PNG")


def _applies(task: Task, subject: Subject) -> bool:
    try:
        task.check(subject)
    except EvaluationError:
        return False
    return True


def test_a_task_that_changes_the_model_is_found_out(stories: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Vandal(Task):
        name = "vandal"
        summary = "changes a weight"

        def measure(self, subject: Subject, options: Any) -> Result:
            with torch.no_grad():
                next(subject.model.parameters())[0, 0] += 1
            return Result({"x": 1.0})

    monkeypatch.setitem(registry._registry, "vandal", Vandal)
    with pytest.raises(RuntimeError, match="vandal has changed the model"):
        evaluate(stories, ["vandal"])
    assert stories.evaluation == {}


def test_all_leaves_out_what_does_not_apply(recall: Run) -> None:
    results = evaluate(recall, "all", {"speed": QUICK["speed"], "calibration": QUICK["calibration"]})
    assert {"perplexity", "recall", "calibration", "activity", "speed"} <= set(results)
    assert "cloze" not in results and "experts" not in results


def test_a_refusal_comes_before_anything_is_measured(recall: Run, probe: Any) -> None:
    with pytest.raises(EvaluationError, match=r"task cloze needs a run that was trained on text.*data=mqar") as caught:
        evaluate(recall, ["probe", "cloze"])
    assert probe.calls == 0 and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("tasks", "options", "message"),
    [
        (["perplexty"], {}, r"task 'perplexty' is unknown: did you mean 'perplexity'"),
        ([], {}, "names no task"),
        (["perplexity:x"], {}, "takes no argument"),
        (["lm_eval"], {}, "takes the name of a task of lm-eval"),
        (["perplexity"], {"perplexity": {"contxt": 1}}, r"perplexity\.contxt is unknown: did you mean 'context'"),
        (["perplexity"], {"perplexity": {"context": -1}}, r"perplexity\.context = -1 is not valid"),
        (["perplexity"], {"needle": {"items": 4}}, r"options of 'needle' are given, but it is not among the tasks"),
        (["needle"], {"needle": {"lengths": [64, 2]}}, r"needle\.lengths = \[64, 2\] is not valid: .*must be a list"),
    ],
)
def test_mistakes_are_one_line(stories: Run, tasks: Any, options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        evaluate(stories, tasks, options)
    assert "\n" not in str(caught.value)


def test_data_that_changed_or_moved_are_noticed(stories: Run, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be read: .*data_path="):
        evaluate(stories, ["perplexity"], data_path=str(tmp_path / "nowhere"), cache_dir=str(tmp_path))
    (tmp_path / "train.txt").write_text("other text " * 400)
    (tmp_path / "valid.txt").write_text("other text " * 400)
    with pytest.raises(DataError, match="gives other tokens now than those"):
        evaluate(stories, ["perplexity"], data_path=str(tmp_path), cache_dir=str(tmp_path))
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in stories.folder.parent.glob("*.txt"):
        (moved / file.name).write_bytes(file.read_bytes())
    found = evaluate(stories, ["perplexity"], data_path=f"{moved}/*.txt", cache_dir=str(tmp_path / "c"))
    assert found["perplexity"]["numbers"]["loss"] > 0


def test_a_task_needs_a_name_of_its_own() -> None:
    class Other(Task):
        name = "perplexity"

    registry.tasks()
    with pytest.raises(ConfigError, match="defined twice"):
        registry.register(Other)

    class Nameless(Task):
        name = "all"

    with pytest.raises(ConfigError, match="not valid"):
        registry.register(Nameless)


@pytest.mark.slow
def test_a_killed_evaluation_keeps_what_was_finished(recall: Run) -> None:
    program = (
        "import os, signal, sys\n"
        "from bouton.evaluation import Result, Task, evaluate, register\n"
        "@register\n"
        "class Victim(Task):\n"
        "    name = 'victim'\n"
        "    summary = 'is killed'\n"
        "    def measure(self, subject, options):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "evaluate(sys.argv[1], ['perplexity', 'victim', 'activity'])\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(recall.folder)], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert set(recall.evaluation) == {"perplexity"}
    fresh: dict[str, bool] = {}
    evaluate(recall, ["perplexity", "activity"], report=lambda label, result, new: fresh.update({label: new}))
    assert fresh == {"perplexity": False, "activity": True}
