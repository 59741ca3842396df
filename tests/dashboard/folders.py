"""Run folders as training writes them, with vitals, costs, samples and pictures, and no training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml

from bouton.mechanisms.drawing import draw_picture
from bouton.mechanisms.pictures import Picture

HOSTILE = "</script><b>@DATA@ & \"quoted\" 'text'</b><!--"


def make_run(
    folder: Path, mechanism: str, seed: int, *, finished: bool = True, wandb: dict[str, Any] | None = None
) -> Path:
    folder.mkdir(parents=True)
    names = [] if mechanism == "none" else mechanism.split("+")
    config = {
        "seed": seed,
        "mechanism": {name: {"strength": 1.0} for name in names},
        "model": {"hidden_size": 64},
        "logger": {} if wandb is None else {"wandb": wandb},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    rows = [f"{step},{6 - step / 100 - seed / 10},0.{seed + 1},0.02" for step in (10, 20, 30)]
    rows.append(f"40,{5.6 - seed / 10},nan,0.01")  # not finite: left out
    (folder / "metrics.csv").write_text("\n".join(["step,train/loss,train/grad_norm,train/lr", *rows]) + "\n")
    (folder / "costs.csv").write_text("step,tokens_per_second,train_seconds\n10,1000,1\n20,1100,2\n")
    if names:
        columns = ",".join(f"{name}/calcium" for name in names)
        (folder / "vitals.csv").write_text(f"step,{columns}\n20," + ",".join("0.5" for _ in names) + "\n")
        for step in (10, 20, 30):
            picture = Picture(torch.full((2, 3, 3), float(step)), "query", "key")
            draw_picture(picture, "", folder / "media" / names[0] / "pool_layer0" / f"{step:08d}.png")
    (folder / "samples.jsonl").write_text(
        "".join(json.dumps({"step": step, "text": f"{HOSTILE} {step}"}) + "\n" for step in (20, 40))
    )
    if finished:
        costs = {"parameters": 1234, "tokens": 4000, "tokens_per_second": 1050.0, "peak_memory_bytes": 2**30}
        final = {"val_loss": 5.0 + seed, "val_bits_per_byte": 2.5}
        summary = {"status": "finished", "step": 40, "final": final, "best": {}, "costs": costs}
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder
