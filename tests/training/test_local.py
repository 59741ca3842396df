"""Training of a body that learns by local rules: same run folder, exact resume, and one line for what has no effect."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import bouton
from bouton.cli.train import main
from bouton.errors import ConfigError
from bouton.evaluation import evaluate
from bouton.hub import save_pretrained
from bouton.training.checkpoints import read_checkpoint

pytest.importorskip("bouton_kernels")
WORDS = [
    "model=substrate", "data=stdlib", "data.max_bytes=200000", "data.val_tokens=2048", "data.seq_len=32",
    "data.batch_size=8", "data.tokenizer.kind=words", "data.tokenizer.vocab_size=200", "trainer.max_steps=12",
    "trainer.val_every=4", "trainer.log_every=1", "callbacks.checkpoint.save_every=4",
]  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"data.cache_dir={tmp_path_factory.mktemp('cache')}"


def test_a_run_is_like_any_other(tmp_path: Path, cache: str) -> None:
    folder = tmp_path / "run"
    assert main([*WORDS, cache, f"run_dir={folder}"]) == 0
    run = bouton.load(folder)
    summary = json.loads((folder / "summary.json").read_text())
    losses = run.metrics["train/loss"].dropna()
    assert summary["step"] == 12 and len(losses) == 12
    assert losses.iloc[-4:].mean() < losses.iloc[:4].mean()
    assert summary["final"]["val_loss"] < run.metrics["val/loss"].dropna().iloc[0]
    assert summary["costs"]["parameters"] == bouton.load(folder, "last").model.num_parameters() > 1000
    assert summary["costs"]["training_flops"] is None
    assert "train/grad_norm" not in run.metrics
    assert run.vitals["substrate/edges"].is_monotonic_increasing
    assert len(run.generate("the", max_new_tokens=8)) > 3
    rates = pd.read_csv(folder / "metrics.csv")["train/lr"].dropna()
    assert rates.max() == pytest.approx(0.1) and rates.iloc[-1] < 0.05  # the schedule moves the rate of the rule


def test_a_resumed_run_is_the_run(tmp_path: Path, cache: str) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main([*WORDS, cache, "schedule=constant", f"run_dir={whole}"]) == 0
    stop = ["schedule=constant", f"run_dir={cut}"]
    assert main([*WORDS, cache, *stop, "trainer.max_steps=8"]) == 0
    assert main([*WORDS, cache, *stop, "ckpt_path=last"]) == 0
    first, second = (read_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"] for folder in (whole, cut))
    assert first.keys() == second.keys()
    # A graph that was read has its rows at other places in memory, and all else alike.
    assert all(torch.equal(x, second[name]) for name, x in first.items() if name != "body.graph")
    edges, others = (bouton.load(folder, "last").model.graph.edge_arrays("predicts") for folder in (whole, cut))
    assert all(np.array_equal(x, y) for x, y in zip(edges, others, strict=True))
    kept = ["step", "train/loss", "val/loss"]
    assert pd.read_csv(whole / "metrics.csv")[kept].equals(pd.read_csv(cut / "metrics.csv")[kept])


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("optimizer=muon", "optimizer = muon is not valid"),
        ("trainer.accumulate_grad_batches=2", "trainer.accumulate_grad_batches = 2 is not valid"),
        ("trainer.compile=true", "trainer.compile = True is not valid"),
        ("trainer.precision=bf16-mixed", "trainer.precision = bf16-mixed is not valid"),
        ("mechanism=presyn", "mechanism 'presyn' does not work on body 'substrate'"),
    ],
)
def test_what_has_no_effect_is_refused(
    word: str, says: str, tmp_path: Path, cache: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*WORDS, cache, f"run_dir={tmp_path / 'run'}", word]) == 1
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("error: ") and says in told


def test_tasks_measure_it_and_export_says_why_not(
    tmp_path: Path, cache: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert main([*WORDS, cache, f"run_dir={folder}"]) == 0
    found = evaluate(bouton.load(folder), ["speed", "ngrams"], {"speed": {"seconds": 0.01, "contexts": [8]}})
    assert found["speed"]["numbers"]["training_tokens_per_second"] > 0
    assert found["ngrams"]["numbers"]["model"] > 1
    with pytest.raises(ConfigError, match="cannot be exported: its model is no network of tensors"):
        save_pretrained(folder, tmp_path / "hub")
