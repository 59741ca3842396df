"""The README's example mechanism is taken from the README and put through the whole contract."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from bouton.mechanisms import registry
from bouton.testing import check

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture
def example(tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (source,) = [block for block in blocks if "@register" in block]
    path = tmp_path / "echo.py"
    path.write_text(source)
    registry.mechanisms()
    monkeypatch.setattr(registry, "_registry", dict(registry._registry))
    spec = importlib.util.spec_from_file_location("readme_echo", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "readme_echo", module)
    spec.loader.exec_module(module)
    return "echo"


def test_example_mechanism_satisfies_the_contract(example):
    assert check(example, pairs=False) == {}
