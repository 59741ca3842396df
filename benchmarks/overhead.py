"""What the platform costs: a training step of ``mechanism=none`` through train() against a bare PyTorch loop.

Both sides run in one process on twins of the same body and the same batches, in turn, step by step: after each
platform step the bare loop makes its own step, and the clock of the platform stands still meanwhile. So a change in
the machine's speed meets both, and the median of the pairwise ratios can be trusted.

    python benchmarks/overhead.py [--steps 60] [--json FILE] [overrides ...]
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

import bouton
from bouton.data import build_datamodule
from bouton.mechanisms import Mechanism
from bouton.models import Body, build
from bouton.training.environment import environment
from bouton.training.run import run


class BareLoop:
    """The loop that a careful researcher would write by hand, with its own model, optimizer and loader."""

    def __init__(self, body: Body, cfg: Any) -> None:
        self.body = body
        self.data = build_datamodule(cfg["data"], cfg["seed"])
        self.data.setup("fit")
        self.batches = iter(self.data.train_dataloader())
        matrices = [p for p in body.parameters() if p.ndim >= 2]
        vectors = [p for p in body.parameters() if p.ndim < 2]
        options = cfg["optimizer"]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": options["weight_decay"]}, {"params": vectors, "weight_decay": 0.0}],
            lr=options["lr"],
            betas=tuple(options["betas"]),
        )

    def step(self) -> float:
        """One step; returns its seconds."""
        begin = time.perf_counter()
        batch = next(self.batches)
        logits, _ = self.body(batch["tokens"], starts=batch["starts"])
        loss = F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten(), ignore_index=-100)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.body.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        loss.item()
        return time.perf_counter() - begin


class Stopwatch(Mechanism):
    """Not plugged into anything: its hook, which runs after all callbacks of a step, makes the bare loop's step."""

    name, summary, source, sockets, state = "stopwatch", "times the steps", "none", (), "none"

    def __init__(self, bare: BareLoop) -> None:
        super().__init__()
        self.bare = [bare]  # in a list: its weights are not this model's
        self.platform: list[float] = []
        self.alone: list[float] = []
        self.last: float | None = None

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        if self.last is not None:
            self.platform.append(time.perf_counter() - self.last)
        self.alone.append(self.bare[0].step())
        self.last = time.perf_counter()


def measure(steps: int, overrides: list[str]) -> dict[str, Any]:
    """Median seconds per step of both sides and the median and quartiles of their ratio."""
    watches: list[Stopwatch] = []

    def make_body(cfg: dict[str, Any]) -> Body:
        body = build(cfg)
        watch = Stopwatch(BareLoop(copy.deepcopy(body), cfg))
        watches.append(watch)
        body.mechanisms["stopwatch"] = watch
        return body

    with tempfile.TemporaryDirectory() as folder:
        cfg = bouton.compose(
            "mechanism=none",
            f"trainer.max_steps={steps}",
            "trainer.val_every=null",
            "trainer.val_batches=1",
            f"run_dir={folder}/run",
            *overrides,
        )
        run(cfg, lambda c: build_datamodule(c["data"], c["seed"]), make_body)
    (watch,) = watches
    warmup = max(3, steps // 10)
    pairs = list(zip(watch.platform, watch.alone[1:], strict=False))[warmup:]
    ratios = sorted(a / b for a, b in pairs)
    quartiles = statistics.quantiles(ratios, n=4)
    machine = environment(seed=0, world_size=1)["machine"]
    return {
        "pairs": len(pairs),
        "platform_s": statistics.median(a for a, _ in pairs),
        "bare_s": statistics.median(b for _, b in pairs),
        "ratio_median": statistics.median(ratios),
        "ratio_quartiles": [quartiles[0], quartiles[2]],
        "overrides": overrides,
        "machine": {name: machine[name] for name in ("cpu", "cores", "threads", "memory_bytes")},
        "torch": torch.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--json", type=Path)
    options, overrides = parser.parse_known_args()
    result = measure(options.steps, overrides)
    table = Table(title="Overhead of the platform, one training step of mechanism=none")
    for column in ("pairs", "platform", "bare loop", "median ratio", "quartiles"):
        table.add_column(column, justify="right")
    low, high = result["ratio_quartiles"]
    table.add_row(
        str(result["pairs"]),
        f"{1e3 * result['platform_s']:.1f} ms",
        f"{1e3 * result['bare_s']:.1f} ms",
        f"{result['ratio_median']:.3f}",
        f"{low:.3f} to {high:.3f}",
    )
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
