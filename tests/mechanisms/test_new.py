"""The scaffold: what it writes works, composes, keeps the contract; and it overwrites nothing."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from omegaconf import OmegaConf

from bouton.errors import ConfigError
from bouton.mechanisms import new, registry
from bouton.testing import CLAUSES, Arm

NAME = "scaffold_trial"
# Clauses that need the mechanism in the real source tree, or minutes.
ELSEWHERE = {"composes_from_yaml", "a_thousand_steps_stay_finite"}


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    for folder in ("src/bouton/mechanisms", "conf/mechanism"):
        (tmp_path / folder).mkdir(parents=True)
    yield tmp_path
    registry._registry.pop(NAME, None)
    sys.modules.pop(f"bouton.mechanisms.{NAME}", None)


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_it_writes_keeps_the_contract_alone_and_composed(root: Path) -> None:
    module, config, test = new.create(NAME, root)
    assert [path.relative_to(root).as_posix() for path in (module, config, test)] == [
        f"src/bouton/mechanisms/{NAME}.py",
        f"conf/mechanism/{NAME}.yaml",
        f"tests/mechanisms/test_{NAME}.py",
    ]
    assert OmegaConf.load(config) == OmegaConf.create({NAME: registry.get(NAME).Params.defaults()})
    cases = [value for key, value in vars(load(test)).items() if key.startswith("test_")]
    assert cases
    for case in cases:
        case()
    for clause in CLAUSES.values():
        if clause.name not in ELSEWHERE:
            clause.check(Arm(NAME, {NAME: {}}))
    composed = Arm("composed", {NAME: {}, "dendrite": {}, "oscillate": {}, "sparse": {}, "septin": {}})
    assert set(composed.build().mechanisms) == set(composed.mechanism)
    CLAUSES["any_split_is_equal"].check(composed)


def test_it_overwrites_nothing(root: Path) -> None:
    existing = root / "conf" / "mechanism" / f"{NAME}.yaml"
    existing.write_text("mine")
    with pytest.raises(ConfigError, match=f"{NAME}.yaml exists"):
        new.create(NAME, root)
    assert existing.read_text() == "mine"
    assert not (root / "src" / "bouton" / "mechanisms" / f"{NAME}.py").exists()


@pytest.mark.parametrize("name", ["", "none", "Two", "two words", "class", "_hidden", "1st", "septin", "base"])
def test_unusable_names_are_refused_before_anything_is_written(root: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="NAME"):
        new.create(name, root)
    assert not [path for path in root.rglob("*") if path.is_file()]


def test_outside_a_source_tree_it_says_where_a_mechanism_belongs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"entry-point group 'bouton\.mechanisms'"):
        new.create(NAME, tmp_path)


def test_the_command_answers_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert new.main([]) == 1
    assert new.main(["septin"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all(line.startswith("error: NAME") for line in lines)
