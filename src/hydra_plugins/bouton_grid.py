"""``hydra/sweeper=grid``: studies of arms and seeds that can be killed and gone on with.

Hydra's scanner imports this at every start, so the work is in ``bouton.evidence.grid``.
"""

# No `from __future__ import annotations`: the scanner runs this module before it is importable, and dataclasses fails.
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class GridSweeperConf:
    """The fields of ``hydra.sweeper`` with ``hydra/sweeper=grid``."""

    _target_: str = "hydra_plugins.bouton_grid.GridSweeper"
    # Arms: mechanisms with overrides behind blanks ("hebb hebb.rule=oja"), or none | each | pairs | everything |
    # leave_one_out. null: the values of mechanism= on the command line.
    arms: list[str] | None = None
    seeds: int = 3  # 0 to N-1, where the command line sweeps no seed
    controls: list[str] = field(default_factory=list)  # the baseline with extra compute: flops, time, params
    params: dict[str, Any] | None = None  # further sweeps, key: "value1,value2"


ConfigStore.instance().store(group="hydra/sweeper", name="grid", node=GridSweeperConf, provider="bouton")


class GridSweeper(Sweeper):
    """A folder per arm and seed, finished ones skipped, interrupted ones continued, crashes recorded."""

    def __init__(
        self,
        arms: list[str] | None = None,
        seeds: int = 3,
        controls: list[str] | None = None,
        params: dict[str, Any] | None = None,
    ) -> None:
        self.options = {"arms": arms, "seeds": seeds, "controls": controls or [], "params": params or {}}
        self.hydra_context: HydraContext | None = None
        self.config: DictConfig | None = None
        self.launcher: Launcher | None = None
        self.task_function: TaskFunction | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra hands over; the launcher is made when the folder of the study is known."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def sweep(self, arguments: list[str]) -> Any:
        """Run the study; returns the table of its runs."""
        from bouton.evidence.grid.sweep import Grid

        assert self.hydra_context is not None and self.task_function is not None and self.config is not None
        return Grid(self.options, self.hydra_context, self.task_function, self.config).run(arguments)
