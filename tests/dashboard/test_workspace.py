"""The W&B workspace and report have the panels of the local page; where they cannot be made, one line says why."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
from folders import make_run

from bouton.dashboard import workspace
from bouton.dashboard.collect import collect
from bouton.dashboard.panels import layout
from bouton.errors import BoutonError, ConfigError

# The library's own.
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic V1 style")
OPTIONS = {"project": "bouton", "entity": "lab", "mode": "online"}


@pytest.fixture
def logged(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", "presyn", 0, wandb=OPTIONS)


def panels(model: Any) -> tuple[set[tuple[str, ...]], str]:
    text = model.model_dump_json(by_alias=True, exclude_none=True)
    return {tuple(json.loads(found)) for found in re.findall(r'"metrics":(\[[^]]*\])', text)}, text


@pytest.mark.parametrize("build", [workspace.build_workspace, workspace.build_report])
def test_the_panels_are_those_of_the_page(logged: Path, build: Any) -> None:
    pytest.importorskip("wandb_workspaces", reason="not installed: pip install 'bouton[dashboards]'")
    runs = collect(logged)
    found, text = panels(build(runs, "lab", "bouton")._to_model())
    wanted = {panel.metrics for section in layout(runs[0].series) for panel in section.panels}
    assert wanted and wanted <= found
    assert '"xAxis":"trainer/global_step"' in text
    assert "media/presyn/pool_layer0" in text and "samples/text" in text
    assert "Vitals of presyn" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([None], r"were not logged to W&B \(logger=wandb\); to=html needs no account"),
        ([{**OPTIONS, "mode": "offline"}], "W&B is offline here: set WANDB_API_KEY"),
        ([OPTIONS, {**OPTIONS, "project": "other"}], "several projects: bouton, other"),
    ],
)
def test_a_refusal_is_one_line(tmp_path: Path, options: list[Any], message: str) -> None:
    for index, each in enumerate(options):
        make_run(tmp_path / "grid" / str(index), "none", index, wandb=each)
    with pytest.raises(ConfigError, match=message) as refusal:
        workspace.create(tmp_path / "grid")
    assert "\n" not in str(refusal.value)


def test_without_the_library(logged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"wandb-workspaces is not installed: pip install 'bouton\[dashboards\]'"):
        workspace.create(logged)


def test_what_the_server_says_is_one_line(logged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb_workspaces", reason="not installed: pip install 'bouton[dashboards]'")

    class Refused:
        def save(self) -> None:
            raise Exception("permission denied\nand a long story")

    monkeypatch.setattr(workspace, "build_workspace", lambda *_: Refused())
    monkeypatch.setattr(workspace, "build_report", lambda *_: Refused())
    with pytest.raises(BoutonError, match=r"W&B did not take the dashboard of bouton: permission denied$"):
        workspace.create(logged)
