"""What mechanisms cost in training: one optimizer step of a 10 M-parameter body, with each of them and without.

All arms live in one process and make their steps in turn on the same batch, so that a change in the machine's speed
meets all alike. A step is the training module's own loss, its backward pass, the clipping of the gradients, and AdamW.

    python benchmarks/training_step.py [--arms none,presyn,..] [--rounds 12] [--threads N] [--json FILE] [overrides ..]

The first of the arms is what the others are divided by; ``each`` stands for every registered mechanism with what it
refines, on top of which FLOPs, parameters and the bytes of sequence state are written down:

    python benchmarks/training_step.py --arms none,each,presyn+stochastic+hebb+camkii+bdnf+moe --threads 1 \
        model.num_layers=4 model.hidden_size=128 model.num_heads=4 data.seq_len=256 data.batch_size=8

``--add FILE`` puts the arms into a table that is there, of the same body and batch: beside each stands the machine that
it was measured on, with the first of the arms in the same turns. What the table has stays as it is.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import bouton
from bouton.errors import BoutonError
from bouton.evidence.grid.arms import single, with_refined
from bouton.files import write_json
from bouton.ops import backends
from bouton.ops.benchmarks.machine import describe
from bouton.ops.benchmarks.timing import Sample, ratio
from bouton.testing.arms import leaves
from bouton.training.module import TrainingModule

ARMS = ("none", "presyn", "hebb", "presyn+hebb")
VOCABULARY = 1024
BODY = (
    "model.num_layers=8",
    "model.hidden_size=320",
    "model.num_heads=5",
    f"model.vocab_size={VOCABULARY}",
    "data.seq_len=512",
    "data.batch_size=4",
)


class Arm:
    """A body with its mechanisms, its optimizer, and a clock around its steps."""

    def __init__(self, mechanism: str, overrides: list[str]) -> None:
        cfg = bouton.compose(f"mechanism={mechanism}", *BODY, *overrides)
        self.batch_size, self.seq_len = int(cfg.data.batch_size), int(cfg.data.seq_len)
        self.module = TrainingModule(
            bouton.build(cfg),
            optimizer=dict(cfg.optimizer),
            schedule={"name": "constant"},
            max_steps=1000,
            targets_per_batch=self.batch_size * self.seq_len,
            token_bytes=torch.ones(int(cfg.model.vocab_size)),
        )
        self.optimizer = self.module.configure_optimizers()["optimizer"]
        self.parameters = sum(p.numel() for p in self.module.parameters())
        body = self.module.body
        self.flops_per_token = body.flops_per_token(self.seq_len)
        with torch.no_grad():
            _, state = body.eval()(torch.zeros(1, self.seq_len, dtype=torch.int64))
        body.train()
        self.state_bytes = sum(leaf.numel() * leaf.element_size() for leaf in leaves(state).values())
        self.sample = Sample()
        self.losses: list[float] = []

    def step(self, batch: dict[str, Tensor]) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        loss = self.module.training_step(batch, 0)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.losses.append(loss.item())
        self.sample.wall.append(time.perf_counter() - wall)
        self.sample.cpu.append(time.process_time() - cpu)


def make_batch(arm: Arm, generator: torch.Generator) -> dict[str, Tensor]:
    """Random tokens of packed rows: a document begins with each row and about every 200 tokens after."""
    shape = arm.batch_size, arm.seq_len
    tokens = torch.randint(VOCABULARY, shape, generator=generator)
    starts = torch.rand(shape, generator=generator) < 1 / 200
    starts[:, 0] = True
    return {"tokens": tokens, "targets": tokens.roll(-1, 1), "starts": starts}


def measure(rounds: int, overrides: list[str], arms: tuple[str, ...] = ARMS) -> dict[str, Any]:
    """Median milliseconds of a step of each arm, and its ratio to the first."""
    backends.configure()
    built = {name: Arm(name, overrides) for name in arms}
    base = next(iter(built.values()))
    generator = torch.Generator().manual_seed(0)
    names = list(built)
    for index in range(rounds + 2):
        if index == 2:  # two steps of each to warm up
            for arm in built.values():
                arm.sample = Sample()
        batch = make_batch(base, generator)
        turn = index % len(names)
        for name in names[turn:] + names[:turn]:
            built[name].step(batch)
    return {
        "arms": {
            name: {
                "parameters": arm.parameters,
                "flops_per_token": arm.flops_per_token,
                "state_bytes": arm.state_bytes,
                "wall_ms": 1e3 * arm.sample.median("wall"),
                "cpu_ms": 1e3 * arm.sample.median("cpu"),
                "ratio": {} if arm is base else ratio(arm.sample, base.sample),
                "loss": [arm.losses[0], arm.losses[-1]],
            }
            for name, arm in built.items()
        },
        "kernels": {choice.op: choice.backend for choice in backends.report()},
        "batch": [base.batch_size, base.seq_len],
        "rounds": rounds,
        "overrides": [*BODY, *overrides],
        "machine": describe("cpu"),
    }


def expand(words: str) -> tuple[str, ...]:
    """The arms that the words of the command mean, each once."""
    arms: list[str] = []
    for word in words.split(","):
        names = map(with_refined, single()) if word == "each" else [tuple(word.split("+"))]
        arms += ["+".join(sorted(name)) for name in names]
    return tuple(dict.fromkeys(arms))


def add(result: dict[str, Any], path: Path) -> None:
    """Put the arms of ``result``, except the one that they are divided by, into the table at ``path``.

    Raises:
        BoutonError: the table has another body, batch or first arm, or one of the arms already.
    """
    table = json.loads(path.read_text())
    base, *arms = result["arms"]
    if table["overrides"] != result["overrides"] or next(iter(table["arms"])) != base:
        words = " ".join(table["overrides"])
        raise BoutonError(f"--add {path}: its first arm is {next(iter(table['arms']))} and its words are {words}")
    if there := [name for name in arms if name in table["arms"]]:
        raise BoutonError(f"--add {path}: {there[0]} is there already; take it out to measure it again")
    circumstances = {name: result[name] for name in ("rounds", "kernels", "machine")}
    table["arms"] |= {name: {**result["arms"][name], **circumstances} for name in arms}
    write_json(path, table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", type=expand, default=ARMS)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--add", type=Path, metavar="FILE")
    options, overrides = parser.parse_known_args()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    result = measure(options.rounds, overrides, options.arms)
    batch = " x ".join(map(str, result["batch"]))
    table = Table(title=f"A training step on {batch} tokens, float32, {torch.get_num_threads()} threads")
    for column in ("mechanism", "parameters", "FLOPs", "state", "step", "ratio", "quartiles", "cpu ratio"):
        table.add_column(column, justify="left" if column == "mechanism" else "right")
    for name, arm in result["arms"].items():
        wall, cpu = arm["ratio"].get("wall"), arm["ratio"].get("cpu")
        table.add_row(
            name,
            f"{arm['parameters'] / 1e6:.2f} M",
            f"{arm['flops_per_token'] / 1e6:.2f} M/token",
            f"{arm['state_bytes'] / 1024:.0f} KiB",
            f"{arm['wall_ms']:.0f} ms",
            f"{wall['ratio']:.3f}" if wall else "1",
            "{:.3f} to {:.3f}".format(*wall["quartiles"]) if wall else "",
            f"{cpu['ratio']:.3f}" if cpu else "",
        )
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 120
    console.print(table)
    console.print("kernels: " + ", ".join(f"{op}: {name}" for op, name in result["kernels"].items()), markup=False)
    if options.json:
        write_json(options.json, result)
    if options.add:
        add(result, options.add)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BoutonError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")
