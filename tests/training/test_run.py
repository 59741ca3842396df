"""A whole run on the stand-ins: files, guard, limits, and nothing that leaks into the process."""

from __future__ import annotations

import json
import math
import random
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import standins
import torch

from bouton.errors import ConfigError, TrainingError
from bouton.training.callbacks.stop import parse_max_time


def test_a_run_folder_holds_everything_and_the_process_is_as_before(tmp_path: Path) -> None:
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    expected = (torch.rand(1).item(), np.random.rand(), random.random())
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    settings = standins.config(
        tmp_path,
        trainer__deterministic=True,
        logger={"tensorboard": {"flush_secs": 1}},
        callbacks__throughput__mfu=True,
    )
    loss = standins.train(settings)
    assert (torch.rand(1).item(), np.random.rand(), random.random()) == expected
    assert not torch.are_deterministic_algorithms_enabled()
    present = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert present >= {
        "config.yaml", "environment.json", "metrics.csv", "vitals.csv", "costs.csv", "summary.json", "curves.png",
        "checkpoints/last.ckpt", "checkpoints/best.ckpt", "tokenizer/tokenizer.json",
    }  # fmt: skip
    assert any("tfevents" in name for name in present)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["final"]["val_loss"] == loss
    assert summary["best"]["val_loss"] <= loss
    assert summary["vitals"].keys() == {"thermostat/level"}
    costs = summary["costs"]
    assert costs["tokens"] == 12 * 2 * 6
    assert costs["training_flops"] == 3 * 2 * costs["parameters"] * costs["tokens"]
    assert costs["tokens_per_second"] > 0 and costs["peak_memory_bytes"] > 1e6 and 0 < costs["mfu"] < 1
    assert math.isclose(summary["final"]["val_bits_per_byte"], loss / math.log(2), rel_tol=1e-9)  # one byte per token


def test_the_same_configuration_gives_the_same_numbers_twice_in_one_process(tmp_path: Path) -> None:
    for name in ("a", "b"):
        standins.train(standins.config(tmp_path / name))
    assert (tmp_path / "a" / "metrics.csv").read_text() == (tmp_path / "b" / "metrics.csv").read_text()


def test_validation_does_not_change_training(tmp_path: Path) -> None:
    often = standins.train(standins.config(tmp_path / "often", trainer__val_every=1))
    never = standins.train(standins.config(tmp_path / "never", trainer__val_every=None))
    assert often == never


def test_hooks_of_mechanisms_are_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bodies: list[Any] = []
    make = standins.make_body

    def keep(settings: Any) -> Any:
        bodies.append(make(settings))
        return bodies[-1]

    monkeypatch.setattr(standins, "make_body", keep)
    standins.train(standins.config(tmp_path))
    assert bodies[0].mechanisms["thermostat"].steps_seen == 12


def test_a_non_finite_loss_stops_before_the_update_and_keeps_the_batch(tmp_path: Path) -> None:
    settings = standins.config(tmp_path, poison=7, trainer__val_every=None)
    with pytest.raises(TrainingError, match=r"loss is nan at step 8: stopped before the update") as caught:
        standins.train(settings)
    assert "\n" not in str(caught.value)
    kept = torch.load(tmp_path / "nonfinite_batch.pt", weights_only=True)
    assert kept["step"] == 8 and kept["batches"][0]["tokens"][0, 0] == 0
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["bouton"]["step"] == 6
    assert torch.isfinite(last["state_dict"]["body.hidden.weight"]).all()
    assert (tmp_path / "metrics.csv").read_text().splitlines()[-1].startswith("7,")


def test_non_finite_gradients_stop_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = standins.make_body

    def exploding(settings: Any) -> Any:
        body = make(settings)
        body.gain.register_hook(lambda g: g * math.inf if body.calls == 5 else g)
        return body

    monkeypatch.setattr(standins, "make_body", exploding)
    with pytest.raises(TrainingError, match=r"gradient norm is (nan|inf) at step 5"):
        standins.train(standins.config(tmp_path))


def test_gradient_clipping_and_the_rate_have_an_effect(tmp_path: Path) -> None:
    losses = {
        standins.train(standins.config(tmp_path / str(i), **options))
        for i, options in enumerate(
            ({}, {"trainer__gradient_clip_val": 1e-10}, {"trainer__gradient_clip_val": None, "optimizer__lr": 0.1})
        )
    }
    assert len(losses) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trainer__max_step": 3}, r"trainer\.max_step is unknown; did you mean 'max_steps'"),
        ({"trainer__max_steps": 0}, r"trainer\.max_steps = 0 is not valid: an integer >= 1"),
        ({"trainer__val_every": 2.5}, r"trainer\.val_every = 2\.5 is not valid"),
        ({"trainer__precision": "16"}, r"trainer\.precision = '16' is unknown"),
        ({"trainer__gradient_clip_val": -1}, r"trainer\.gradient_clip_val = -1"),
        ({"trainer__max_time": "soon"}, r"trainer\.max_time = 'soon'"),
        ({"callbacks__checkpoint__save_every": 0}, r"callbacks\.checkpoint\.save_every = 0"),
        ({"callbacks__early_stop": {"patience": 2}}, r"callbacks\.early_stop\.min_delta is missing"),
        ({"callbacks__swa": {}}, r"callbacks\.swa is unknown"),
        ({"logger": {"mlflow": {}}}, r"logger\.mlflow is unknown; known: csv, tensorboard, wandb"),
        ({"model__vocab_size": 5}, r"model\.vocab_size = 5 is too small: the tokenizer has 11 tokens"),
    ],
)
def test_bad_fields_are_named_and_nothing_is_written(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        standins.train(standins.config(tmp_path / "run", **options))
    assert not (tmp_path / "run").exists()


def test_max_time() -> None:
    assert parse_max_time(None) is None
    assert parse_max_time(90) == parse_max_time("00:01:30") == timedelta(seconds=90)
    assert parse_max_time("1:00:00:01") == timedelta(days=1, seconds=1)
    for bad in ("5", "00:-1:00", 0, True, "1:2:3:4:5"):
        with pytest.raises(ConfigError, match=r"trainer\.max_time"):
            parse_max_time(bad)
