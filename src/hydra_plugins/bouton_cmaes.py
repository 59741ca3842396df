"""``hydra/sweeper=cmaes``. Hydra imports this at every start: it must stay light, the work is in ``bouton.sweeps``."""

from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class CmaesSweeper(Sweeper):
    """Tunes parameters by CMA-ES. ``settings`` are the keys of ``conf/hydra/sweeper/cmaes.yaml``."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.hydra_context: HydraContext | None = None
        self.config: DictConfig | None = None
        self.task_function: TaskFunction | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def sweep(self, arguments: list[str]) -> Any:
        from bouton.sweeps.start import run_sweep

        assert self.hydra_context is not None and self.task_function is not None and self.config is not None
        return run_sweep(self.settings, arguments, self.hydra_context, self.task_function, self.config)
