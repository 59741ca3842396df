"""The example task of docs/evaluation.md is taken from there and run."""

import importlib.util
import math
import re
import sys
from pathlib import Path

import pytest

from bouton.evaluation import evaluate, registry
from bouton.runs import Run

PAGE = Path(__file__).parents[2] / "docs" / "evaluation.md"


def test_the_example_is_a_whole_task(stories: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "docs_entropy.py").write_text(source)
    registry.tasks()
    monkeypatch.setattr(registry, "_registry", dict(registry._registry))
    spec = importlib.util.spec_from_file_location("docs_entropy", tmp_path / "docs_entropy.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "docs_entropy", module)
    spec.loader.exec_module(module)
    numbers = evaluate(stories, ["entropy"], {"entropy": {"rows": 8}})["entropy"]["numbers"]
    assert 0 < numbers["entropy_low"] < numbers["entropy"] < math.log(stories.model.vocab_size)


def test_every_task_is_on_the_page() -> None:
    table = PAGE.read_text()
    assert all(f"| `{name}" in table for name in registry.tasks())
