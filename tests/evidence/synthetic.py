"""Run folders as training writes them, with known effects and no training."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from bouton.evidence.arms import Arm, write_record

STEPS, TOKENS_PER_STEP, EVERY = 400, 2048, 50
FLOPS, SPEED, PARAMETERS = 5.0e6, 20_000.0, 800_000


def make_run(
    folder: Path,
    mechanism: str,
    seed: int,
    loss: float,
    *,
    config: Mapping[str, Any] | None = None,
    arm: Arm | None = None,
    steps: int = STEPS,
    flops: float = 1.0,
    slower: float = 1.0,
    parameters: float = 1.0,
) -> Path:
    """A finished run whose held-out loss ends at ``loss``; costs are relative to the plain body's."""
    folder.mkdir(parents=True)
    names = [] if mechanism == "none" else mechanism.split("+")
    settings = {
        "seed": seed,
        "mechanism": {name: {"strength": 1.0} for name in names},
        "model": {"hidden_size": 64, "vocab_size": 128},
        "optimizer": {"name": "adamw", "lr": 0.002},
        "trainer": {"max_steps": steps},
        "run_dir": str(folder),
        **(config or {}),
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    at = [1, *range(EVERY, steps + 1, EVERY)]
    at = at if at[-1] == steps else [*at, steps]
    course = [loss + 3.0 * (step**-0.5 - steps**-0.5) for step in at]
    lines = ["step,train/loss,val/loss,val/accuracy"]
    lines += [f"{step},{value + 0.1!r},{value!r},{1 / value!r}" for step, value in zip(at, course, strict=True)]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    tokens = steps * TOKENS_PER_STEP
    summary = {
        "status": "finished",
        "step": steps,
        "final": {"val_loss": course[-1], "val_accuracy": 1 / course[-1], "train_loss": course[-1] + 0.1},
        "best": {"step": steps, "val_loss": min(course)},
        "costs": {
            "parameters": round(PARAMETERS * parameters),
            "training_flops_per_token": FLOPS * flops,
            "training_flops": FLOPS * flops * tokens,
            "tokens": tokens,
            "tokens_per_second": SPEED / slower,
            "train_seconds": tokens / SPEED * slower,
            "wall_seconds": 1.2 * tokens / SPEED * slower,
            "peak_memory_bytes": 2**30,
            "device": "cpu",
            "devices": 1,
        },
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    if arm is not None:
        write_record(folder, arm)
    return folder


def make_study(
    root: Path,
    effects: Mapping[str, float],
    seeds: Iterable[int],
    *,
    noise: float = 0.005,
    costs: Mapping[str, Mapping[str, float]] | None = None,
    controls: bool = False,
    rng: np.random.Generator | None = None,
) -> Path:
    """A sweep: arm -> effect on the loss; a seed moves all arms together, ``noise`` each for itself.

    With ``controls`` the plain body also ran with 1.3 times the steps (0.03 better) and 1.1 times the parameters.
    """
    rng = rng or np.random.default_rng(1)
    for seed in seeds:
        base = 2.0 + rng.normal(0, 0.05)
        for mechanism, effect in effects.items():
            name = f"{mechanism}_seed{seed}"
            loss = base + effect + (rng.normal(0, noise) if noise else 0.0)
            make_run(root / name, mechanism, seed, loss, **(costs or {}).get(mechanism, {}))
        if controls:
            longer = Arm("none", control="time", of="none", label="none@time")
            wider = Arm("none", control="params", of="none", label="none@params")
            loss = base + (rng.normal(0, noise) if noise else 0.0)
            make_run(root / f"none@time_seed{seed}", "none", seed, loss - 0.03, arm=longer, steps=round(STEPS * 1.3))
            make_run(root / f"none@params_seed{seed}", "none", seed, loss - 0.01, arm=wider, parameters=1.1, flops=1.1)
    return root
