from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

import bouton
from bouton.errors import ConfigError
from bouton.mechanisms import registry
from bouton.runs import Run


class Entry:
    """An installed entry point."""

    name, value = "lost", "lostpackage.lost"
    dist = SimpleNamespace(name="lost-package", version="1.2")

    def load(self) -> None:
        raise ModuleNotFoundError("No module named 'lostpackage'")


@pytest.fixture
def broken(monkeypatch):
    monkeypatch.setattr(registry, "_discovered", False)
    monkeypatch.setattr(registry, "_broken", [])
    monkeypatch.setattr(registry, "entry_points", lambda group: [Entry()])


def test_a_package_that_cannot_be_imported_is_named_and_harms_no_other(broken):
    assert "presyn" in registry.mechanisms()
    with pytest.raises(ConfigError, match=r"'lost' is unknown: .*package 'lost-package 1.2' .*No module named"):
        registry.get("lost")
    with pytest.raises(ConfigError, match=r"'lost' is unknown: .*package 'lost-package 1.2'"):
        bouton.compose("mechanism=lost")


def test_a_mechanism_knows_its_package(monkeypatch):
    class Found(Entry):
        def load(self) -> None:
            registry._registry["found"] = registry._registry["hebb"]

    registry.mechanisms()
    monkeypatch.setattr(registry, "_registry", dict(registry._registry))
    monkeypatch.setattr(registry, "_packages", {})
    monkeypatch.setattr(registry, "_discovered", False)
    monkeypatch.setattr(registry, "entry_points", lambda group: [Found()])
    assert registry.packages() == {"found": "lost-package 1.2"}


@pytest.mark.parametrize("recorded", [True, False])
def test_a_run_names_the_package_that_is_missing(tmp_path, recorded):
    if recorded:
        facts = {"mechanism_packages": {"gone": "gone-package 0.3"}}
        (tmp_path / "environment.json").write_text(json.dumps(facts))
    config = bouton.compose("mechanism=none").copy()
    config.mechanism = {"gone": {}}
    expected = "'gone' comes from the package 'gone-package 0.3', which is not" if recorded else "'gone' is unknown"
    with pytest.raises(ConfigError, match=expected):
        Run(tmp_path, "best", None)._check_mechanisms(config)
