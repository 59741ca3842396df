"""The shipped studies: they compose, and their grids are those that they promise."""

from __future__ import annotations

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import bouton
from bouton.config import conf_dir
from bouton.evidence.grid.arms import builds, expand, with_refined
from bouton.mechanisms import registry

STUDIES = sorted(path.stem for path in (conf_dir() / "experiment" / "ablation").glob("*.yaml"))


def sweeper(study: str) -> dict:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        found = compose("train", [f"experiment=ablation/{study}"], return_hydra_config=True).hydra
    assert found.runtime.choices["hydra/sweeper"] == "grid"
    return OmegaConf.to_container(found.sweeper)


@pytest.mark.parametrize("study", STUDIES)
def test_every_arm_goes_on_the_body_of_its_study(study: str) -> None:
    cfg = bouton.compose(f"experiment=ablation/{study}", "data=stdlib")
    arms, _ = expand(sweeper(study)["arms"], builds(dict(cfg.model)))
    for planned in arms:
        assert bouton.build(bouton.compose(f"experiment=ablation/{study}", *planned.words), device="meta")


def test_core_runs_every_mechanism_alone_and_together() -> None:
    cfg = bouton.compose("experiment=ablation/core")
    arms = [planned.arm.label for planned in expand(sweeper("core")["arms"], builds(dict(cfg.model)))[0]]
    assert arms[0] == "none" and {"+".join(with_refined([name])) for name in registry.mechanisms()} <= set(arms)
    assert max(arm.count("+") for arm in arms) >= 2


def test_the_study_is_the_one_that_was_asked_for() -> None:
    found = sweeper("study")
    assert (found["arms"], found["seeds"]) == (
        ["none", "presyn", "presyn presyn.release=age", "hebb", "hebb+presyn"],
        3,
    )
    assert bouton.compose("experiment=ablation/study").data.name == "tinystories"
