"""A tiny body with dropout and organism state, and tiny data, behind the interfaces that training uses.

Run as a script it trains from a JSON configuration, and can be told to kill itself at an unlucky moment.
"""

from __future__ import annotations

import copy
import io
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from bouton.data import build_datamodule
from bouton.mechanisms.base import Mechanism
from bouton.training import run as training_run

VOCAB = 11
CONF = Path(__file__).parents[2] / "conf"


def config(folder: Path, **overrides: Any) -> dict[str, Any]:
    """The shipped defaults in a tiny size; overrides by path with ``__`` for the dot."""

    def group(name: str, option: str) -> Any:
        loaded = OmegaConf.to_container(OmegaConf.load(CONF / name / f"{option}.yaml"))
        assert isinstance(loaded, dict)
        loaded.pop("defaults", None)
        return loaded

    optimizer = overrides.pop("optimizer", "adamw")
    result: dict[str, Any] = {
        "seed": 0,
        "run_dir": str(folder),
        "ckpt_path": None,
        "mechanism": {},
        "model": {"width": 8, "dropout": 0.1, "vocab_size": None},
        "data": {"name": "tiny", "seq_len": 6, "batch_size": 2, "ignore": False, "tokenizer": {"kind": "none"}},
        "optimizer": group("optimizer", optimizer),
        "schedule": group("schedule", overrides.pop("schedule", "cosine")),
        "trainer": {
            **group("trainer", "default"),
            "accelerator": "cpu",
            "max_steps": 12,
            "val_every": 4,
            "val_batches": 2,
            "log_every": 1,
        },
        "logger": {},
        "callbacks": {
            **group("callbacks", "default"),
            "throughput": {"mfu": False},
            "progress": {"refresh_every": None},
            "checkpoint": {"save_every": 3, "save_best": True},
        },
        "kernels": {"backend": "auto"},
        "poison": None,
    }
    for path, value in overrides.items():
        node = result
        *parents, leaf = path.split("__")
        for key in parents:
            node = node[key]
        node[leaf] = value
    return copy.deepcopy(result)


class Thermostat(Mechanism):
    """Organism state: follows the mean activity; its bias feeds back, so an error in it changes the losses."""

    name = "thermostat"
    summary = "test"
    source = "none"
    sockets = ()

    def __init__(self) -> None:
        super().__init__()
        self.organism_state("level", (), 0.0)
        self.steps_seen = 0

    def update_organism(self, means: Mapping[str, Tensor]) -> None:
        self.level.add_(0.5 * (means["activity"] - self.level))  # type: ignore[operator]

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.steps_seen = self.trainer.global_step + 1

    def report(self, vitals: Any) -> None:
        vitals.add("thermostat", "level", self.level, 0)


class TinyBody(nn.Module):
    """An embedding, a hidden layer, dropout and a head."""

    num_labels: int | None = None

    def __init__(self, width: int, dropout: float, kill_at: int = 0, vocab: int = VOCAB) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.vocab_size, self.hidden_size, self.num_layers, self.max_seq_len = vocab, width, 1, 64
        self.embedding = nn.Embedding(vocab, width)
        self.hidden = nn.Linear(width, 2 * width)
        self.gain = nn.Parameter(torch.ones(2 * width))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(2 * width, vocab, bias=False)
        self.mechanisms = nn.ModuleDict({"thermostat": Thermostat()})
        self.kill_at, self.calls = kill_at, 0
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=generator) * 0.3

    def forward(
        self, tokens: Tensor, state: Any = None, *, starts: Any = None, samples: Any = None, vitals: Any = None
    ) -> Any:
        self.calls += self.training
        if self.training and self.calls == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        thermostat: Any = self.mechanisms["thermostat"]
        hidden = torch.tanh(self.hidden(self.embedding(tokens)) - thermostat.level.to(self.gain.dtype))
        if self.training:
            thermostat.observe("activity", hidden.sum(), hidden.numel())
        if vitals is not None:
            thermostat.report(vitals)
        return self.head(self.dropout(hidden * self.gain)), {}

    def commit_observations(self, reduce: Any) -> None:
        self.mechanisms["thermostat"].commit_observations(reduce)  # type: ignore[operator]

    def auxiliary_loss(self) -> Tensor:
        return 1e-3 * self.gain.square().mean()

    def flops_per_token(self, seq_len: int) -> float:
        return 2.0 * sum(p.numel() for p in self.parameters())


class TinyTokenizer:
    vocab_size = VOCAB
    fingerprint = "tiny"

    @property
    def token_bytes(self) -> Any:
        return torch.tensor([0] + [1] * (VOCAB - 1))

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.json").write_text("{}")


def sample(index: int, length: int, ignore: bool) -> dict[str, Tensor]:
    """The text at one place of the order: a noisy count, so that there is something to learn."""
    generator = torch.Generator().manual_seed(index)
    noise = torch.rand(length + 1, generator=generator) < 0.2
    tokens = (torch.arange(length + 1) + index) % (VOCAB - 1) + 1
    tokens = torch.where(noise, torch.randint(1, VOCAB, (length + 1,), generator=generator), tokens)
    targets = tokens[1:].clone()
    if ignore:
        targets[: index % (length - 1)] = -100
    starts = torch.zeros(length, dtype=torch.bool)
    starts[0] = True
    return {"tokens": tokens[:-1], "targets": targets, "starts": starts}


class _Batches(IterableDataset[dict[str, Tensor]]):
    def __init__(self, data: TinyData, first: int, last: int | None, poison: int | None) -> None:
        self.data, self.first, self.last, self.poison = data, first, last, poison

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        d = self.data
        world = int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1
        rank = int(os.environ["RANK"]) if world > 1 else 0
        step = self.first
        while self.last is None or step < self.last:
            rows = [sample((step * world + rank) * d.batch + b, d.length, d.ignore) for b in range(d.batch)]
            batch = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
            if step == self.poison:
                batch["tokens"] = batch["tokens"].clone()
                batch["tokens"][0, 0] = 0
            yield batch
            step += 1


class TinyData(lightning.LightningDataModule):
    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.batch, self.length = settings["data"]["batch_size"], settings["data"]["seq_len"]
        self.ignore, self.poison = settings["data"]["ignore"], settings["poison"]
        self.tokenizer = TinyTokenizer()
        self.done = 0

    def state_dict(self) -> dict[str, Any]:
        return {"done": int(vars(self.trainer.fit_loop.epoch_loop.batch_progress.total)["processed"])}  # type: ignore[union-attr]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.done = state_dict["done"]

    def train_dataloader(self) -> Any:
        return DataLoader(_Batches(self, self.done, None, self.poison), batch_size=None)

    def val_dataloader(self) -> Any:
        return DataLoader(_Batches(self, 10_000, 10_004, None), batch_size=None)


def make_body(settings: Mapping[str, Any]) -> TinyBody:
    model = settings["model"]
    body = TinyBody(
        model["width"], model["dropout"], int(os.environ.get("KILL_AT_CALL", "0")), model["vocab_size"] or VOCAB
    )
    if settings["poison"] is not None:
        with torch.no_grad():
            body.embedding.weight[0] = float("nan")
    return body


def train(settings: Mapping[str, Any]) -> float:
    """Run training on the stand-ins; data of another name than theirs are the package's."""

    def make_data(given: Mapping[str, Any]) -> Any:
        return TinyData(given) if given["data"]["name"] == "tiny" else build_datamodule(given["data"], given["seed"])

    return training_run.run(OmegaConf.create(dict(settings)), make_data, make_body)  # type: ignore[arg-type]


def train_on_ranks(settings: Mapping[str, Any], count: int) -> None:
    """Run training in ``count`` processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "TORCHELASTIC_RUN_ID": "test",
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, json.dumps(settings)],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(count)
    ]
    for process in processes:
        output, _ = process.communicate(timeout=90)
        assert process.returncode == 0, output


def _kill_inside_save(number: int) -> None:
    """Make the ``number``-th ``torch.save`` write half of its bytes and die."""
    save, count = torch.save, 0

    def half(content: Any, file: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal count
        count += 1
        if count < number:
            save(content, file, *args, **kwargs)
            return
        buffer = io.BytesIO()
        save(content, buffer)
        file.write(buffer.getvalue()[: len(buffer.getvalue()) // 2])
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    torch.save = half


if __name__ == "__main__":
    torch.set_num_threads(1)
    if number := int(os.environ.get("KILL_IN_SAVE", "0")):
        _kill_inside_save(number)
    train(json.loads(sys.argv[1]))
