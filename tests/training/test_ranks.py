"""Two processes compute what one does with twice the batch; accumulation computes what a larger batch does."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import standins
import torch


def losses(folder: Path, column: str) -> list[float]:
    with (folder / "metrics.csv").open() as file:
        return [float(row[column]) for row in csv.DictReader(file) if row[column]]


def load(folder: Path) -> Any:
    return torch.load(folder / "checkpoints/last.ckpt", weights_only=True)


def assert_close(a: Path, b: Path) -> None:
    for column in ("train/loss", "train/grad_norm", "val/loss", "val/bits_per_byte", "val/accuracy"):
        assert losses(a, column) == pytest.approx(losses(b, column), rel=1e-5), column
    states = [load(f)["state_dict"] for f in (a, b)]
    assert "body.mechanisms.thermostat.level" in states[0]
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], rtol=1e-5, atol=1e-7, msg=name)


# Dropout draws per process: equality over processes is a statement about deterministic bodies.
COMMON: dict[str, Any] = {"model__dropout": 0.0, "data__ignore": True, "trainer__val_batches": None}


def test_accumulation_equals_a_larger_batch(tmp_path: Path) -> None:
    standins.train(standins.config(tmp_path / "one", data__batch_size=4, **COMMON))
    standins.train(standins.config(tmp_path / "two", data__batch_size=2, trainer__accumulate_grad_batches=2, **COMMON))
    one, two = (losses(tmp_path / f, "train/loss") for f in ("one", "two"))
    assert one == pytest.approx(two, rel=1e-5)
    states = [
        torch.load(tmp_path / f / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for f in ("one", "two")
    ]
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], rtol=1e-5, atol=1e-7, msg=name)


def test_two_ranks_equal_one_with_twice_the_batch(tmp_path: Path) -> None:
    one = standins.config(tmp_path / "one", data__batch_size=4, **COMMON)
    standins.train(one)
    two = standins.config(tmp_path / "two", data__batch_size=2, trainer__devices=2, **COMMON)
    standins.train_on_ranks(two, 2)
    assert_close(tmp_path / "one", tmp_path / "two")
    assert len(load(tmp_path / "two")["bouton"]["random_states"]) == 2
    summary = json.loads((tmp_path / "two" / "summary.json").read_text())
    assert summary["costs"]["devices"] == 2
    assert summary["costs"]["tokens"] == 12 * 4 * 6
