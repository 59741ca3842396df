"""The README's example mechanism is taken from the README and put through the whole contract."""

from __future__ import annotations

import importlib
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
    (tmp_path / "readme_echo.py").write_text(source)
    registry.mechanisms()
    monkeypatch.setattr(registry, "_registry", dict(registry._registry))
    monkeypatch.syspath_prepend(tmp_path)  # processes that the contract starts find it there, too
    importlib.import_module("readme_echo")
    yield "echo"
    del sys.modules["readme_echo"]


def test_example_mechanism_satisfies_the_contract(example):
    assert check(example, pairs=False) == {}
