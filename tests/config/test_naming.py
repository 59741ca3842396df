"""Names of runs: equal for equal configurations, and safe in shells and on the command line."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from bouton.config import canonical_name
from bouton.config.naming import safe


def test_canonical_name_does_not_depend_on_order() -> None:
    assert canonical_name(OmegaConf.create({"mechanism": {"b": {}, "a": None}})) == "a+b"
    assert canonical_name(OmegaConf.create({"mechanism": {}})) == "none"
    assert canonical_name(OmegaConf.create({"seed": 1})) == "none"


@pytest.mark.parametrize(("name", "expected"), [("hebb+presyn", "hebb+presyn"), ("a/b=1,2 c", "a-b-1-2-c"), ("ä", "")])
def test_safe(name: str, expected: str) -> None:
    assert safe(name) == expected
    assert len(safe("x" * 500)) <= 80


def test_resolvers() -> None:
    cfg = OmegaConf.create(
        {
            "mechanism": {"presyn": {}, "hebb": {}},
            "run_dir": None,
            "folder": "${bouton.first:${run_dir},runs/${bouton.name:}}",
        }
    )
    assert cfg.folder == "runs/hebb+presyn"
    cfg.run_dir = "mine"
    assert cfg.folder == "mine"
