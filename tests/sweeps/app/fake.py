"""A Hydra application whose objective costs nothing; it seeds numpy's global generator, as training does."""

from __future__ import annotations

import math
import os
from pathlib import Path

import hydra
import numpy as np
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig


def objective(cfg: DictConfig) -> float:
    np.random.seed(cfg.seed)
    if cfg.log is not None:
        with Path(cfg.log).open("a") as file:
            file.write(f"{Path(HydraConfig.get().runtime.output_dir).name} {os.environ.get('CUDA_VISIBLE_DEVICES')}\n")
    if cfg.fragile > 0.7:
        raise ValueError("too fragile")
    quadratic = (cfg.x - 1) ** 2 + math.log(cfg.y / 0.1) ** 2 + 0.1 * abs(cfg.n - 7)
    return float(quadratic + (cfg.kind != "b") + 0.1 * np.random.rand())


if __name__ == "__main__":
    hydra.main(version_base="1.3", config_path=".", config_name="fake")(objective)()
