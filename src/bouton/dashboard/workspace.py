"""The same panels in Weights & Biases: a workspace of the project, and a report, made by wandb-workspaces."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bouton.dashboard.collect import RunData, collect
from bouton.dashboard.panels import MEDIA, SAMPLES, Section, layout
from bouton.errors import BoutonError, ConfigError
from bouton.evidence.frame import read_config
from bouton.training.loggers import wandb_mode

STEP = "trainer/global_step"  # under which Lightning's W&B logger counts optimizer steps
NAME = "Bouton"


def create(folder: str | Path) -> dict[str, str]:
    """Create workspace and report of the project that the runs in ``folder`` were logged to.

    Returns:
        ``workspace`` and ``report`` -> address.

    Raises:
        ConfigError: the runs were not logged to W&B, W&B is offline here, or wandb-workspaces is not installed.
        DataError: no such folder, or no run in it.
        BoutonError: the server refused.
    """
    runs = collect(folder)
    project, entity = where(runs)
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise ConfigError("to = wandb: wandb-workspaces is not installed: pip install 'bouton[dashboards]'")
    try:
        import wandb

        owner = str(wandb.Api().default_entity) if entity is None else entity
        workspace = build_workspace(runs, owner, project)
        report = build_report(runs, owner, project)
        workspace.save()
        report.save()
    except Exception as error:  # the library passes on what its transport raises, and bare Exceptions of its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise BoutonError(f"to = wandb: W&B did not take the dashboard of {project}: {reason}") from error
    return {"workspace": str(workspace.url), "report": str(report.url)}


def where(runs: Sequence[RunData]) -> tuple[str, str | None]:
    """Project and entity (None: the account's default) that the runs were logged to.

    Raises:
        ConfigError: none was logged to W&B, they are of several projects, or W&B is offline.
    """
    options = [found for run in runs if (found := _logged_to(run)) is not None]
    if not options:
        raise ConfigError("to = wandb: these runs were not logged to W&B (logger=wandb); to=html needs no account")
    targets = {(str(each["project"]), each.get("entity")) for each in options}
    if len(targets) > 1:
        names = ", ".join(sorted(project for project, _ in targets))
        raise ConfigError(
            f"to = wandb: these runs were logged to several projects: {names}; name the run folder of one"
        )
    if wandb_mode(options[0].get("mode")) == "offline":
        raise ConfigError(
            "to = wandb: W&B is offline here: set WANDB_API_KEY or run wandb login; to=html needs no account"
        )
    return targets.pop()


def build_workspace(runs: Sequence[RunData], entity: str, project: str) -> Any:
    """The workspace, not saved yet."""
    ws = importlib.import_module("wandb_workspaces.workspaces")

    sections = [
        ws.Section(name=section.title, panels=_panels(section), is_open=index < 2)
        for index, section in enumerate(_sections(runs))
    ]
    if seen := _seen(runs):
        sections.append(ws.Section(name="Samples and pictures", panels=seen))
    return ws.Workspace(entity=entity, project=project, name=NAME, sections=sections)


def build_report(runs: Sequence[RunData], entity: str, project: str) -> Any:
    """The report, not saved yet: a heading and a grid of panels per section, over the runs of its project."""
    wr = importlib.import_module("wandb_workspaces.reports.v2")

    blocks: list[Any] = []
    for section in _sections(runs):
        blocks += [wr.H2(section.title)]
        blocks += [wr.P(f"{panel.title}: {panel.doc}.") for panel in section.panels if panel.doc]
        blocks += [wr.PanelGrid(panels=_panels(section))]
    if seen := _seen(runs):
        blocks += [wr.H2("Samples and pictures"), wr.PanelGrid(panels=seen)]
    return wr.Report(
        entity=entity, project=project, title=f"{NAME}: {project}", blocks=blocks, width="fluid",
        description="Losses, costs and vitals of the runs in this project.",
    )  # fmt: skip


def _sections(runs: Sequence[RunData]) -> list[Section]:
    return layout(name for run in runs for name in run.series)


def _panels(section: Section) -> list[Any]:
    wr = importlib.import_module("wandb_workspaces.reports.v2")

    return [
        wr.LinePlot(title=panel.title, x=STEP, y=list(panel.metrics), title_x="optimizer step", title_y=panel.unit)
        for panel in section.panels
    ]


def _seen(runs: Sequence[RunData]) -> list[Any]:
    """Panels of sample texts and of pictures, as far as there are any."""
    wr = importlib.import_module("wandb_workspaces.reports.v2")

    panels: list[Any] = []
    if any(run.samples for run in runs):
        panels.append(wr.WeavePanelSummaryTable(table_name=SAMPLES))
    for name in sorted({name for run in runs for name in run.media}):
        panels.append(wr.MediaBrowser(title=name, media_keys=[f"{MEDIA}/{name}"], num_columns=2))
    return panels


def _logged_to(run: RunData) -> Mapping[str, Any] | None:
    logger = read_config(Path(run.row["folder"])).get("logger") or {}
    found = logger.get("wandb")
    return found if isinstance(found, Mapping) else None
