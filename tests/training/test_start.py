"""Fine-tuning: a run that begins with the weights of another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import bouton
from bouton.errors import CheckpointError
from bouton.training import train

SIZES = ["model=tiny", "model.num_layers=1", "model.hidden_size=16", "model.num_heads=2"]


def words(folder: Path, *more: str) -> list[str]:
    return [
        f"run_dir={folder}", f"data.cache_dir={folder.parent / 'cache'}", "data.seq_len=96", "data.batch_size=2",
        "data.val_fraction=0.2", "data.val_tokens=192", "trainer.accelerator=cpu", "trainer.max_steps=4",
        "trainer.val_every=2", "trainer.log_every=1", "logger=csv", "callbacks.throughput.mfu=false", *more,
    ]  # fmt: skip


def run_once(*overrides: str) -> float:
    return train(bouton.compose(*overrides))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    (folder / "text").mkdir()
    (folder / "text" / "a.txt").write_text("some words to begin with. " * 200)
    run_once(*words(folder / "run", *SIZES, "mechanism=hebb", "data=text", f"data.path={folder / 'text'}",
                    "data.tokenizer.kind=bytes"))  # fmt: skip
    chats = [{"instruction": f"what is {n}?", "output": f"it is {n * n}"} for n in range(60)]
    (folder / "chats.jsonl").write_text("\n".join(map(json.dumps, chats)))
    return folder


def tuned(base: Path, name: str, *more: str) -> list[str]:
    return words(base / name, f"init_from={base / 'run'}", "data=chat", f"data.path={base / 'chats.jsonl'}", *more)


def test_it_begins_with_the_best_weights_and_says_so(base: Path) -> None:
    run_once(*tuned(base, "frozen", "trainer.max_steps=1", "optimizer.lr=1e-30", "optimizer.weight_decay=0.0"))
    first, second = bouton.load(base / "run"), bouton.load(base / "frozen", checkpoint="last")
    assert all(
        torch.equal(tensor, second.model.state_dict()[name]) for name, tensor in first.model.state_dict().items()
    )
    assert second.tokenizer.fingerprint == first.tokenizer.fingerprint
    origin = json.loads((base / "frozen" / "init_from.json").read_text())
    assert origin["run"] == str((base / "run").resolve()) and origin["checkpoint"] == "best.ckpt"
    assert origin["step"] == 4 or origin["step"] == 2
    assert list(second.config.mechanism) == ["hebb"] and second.config.model.hidden_size == 16
    header = (base / "frozen" / "metrics.csv").read_text().splitlines()
    assert len(header) == 2  # its own steps from 1 on
    last = base / "run" / "checkpoints" / "last.ckpt"
    run_once(*tuned(base, "from_file", "trainer.max_steps=1"), f"init_from={last}")
    assert json.loads((base / "from_file" / "init_from.json").read_text())["checkpoint"] == "last.ckpt"


def test_a_resumed_run_equals_one_without_a_stop(base: Path) -> None:
    whole = run_once(*tuned(base, "whole", "schedule=constant"))
    run_once(*tuned(base, "stopped", "schedule=constant", "trainer.max_steps=2"))
    origin = (base / "stopped" / "init_from.json").read_text()
    assert run_once(*tuned(base, "stopped", "schedule=constant", "ckpt_path=last")) == whole
    assert (base / "stopped" / "init_from.json").read_text() == origin
    losses = [(base / name / "metrics.csv").read_text() for name in ("whole", "stopped")]
    assert losses[0] == losses[1]


def test_learning_begins_where_the_run_ended(base: Path) -> None:
    fresh = run_once(
        *words(base / "fresh", *SIZES, "mechanism=hebb", "data=chat", f"data.path={base / 'chats.jsonl'}"),
        "data.tokenizer.kind=bytes",
        "optimizer.lr=1e-30",
    )
    assert run_once(*tuned(base, "going_on", "optimizer.lr=1e-30")) < fresh


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("model.hidden_size=32", r"embedding\.weight has shape \(\d+, 16\) there and \(\d+, 32\) in the configuration"),
        ("model.num_layers=2", r"it lacks layers\.1"),
        ("mechanism=none", r"it has layers\.0.*hebb.* besides"),
    ],
)
def test_shapes_that_cannot_agree_are_one_line_and_leave_nothing(base: Path, more: str, said: str) -> None:
    with pytest.raises(CheckpointError, match=rf"init_from = .*best\.ckpt does not fit this model: {said}") as caught:
        run_once(*tuned(base, "misfit", more))
    assert "\n" not in str(caught.value) and not (base / "misfit").exists()


def test_evaluation_needs_only_the_new_run(base: Path, tmp_path: Path) -> None:
    from bouton.evaluation.subject import Subject

    run_once(*tuned(base, "kept", "trainer.max_steps=1"))
    tokenizer = base / "run" / "tokenizer"
    tokenizer.rename(tmp_path / "away")
    try:
        assert len(Subject(bouton.load(base / "kept")).data.rows("val")) > 0
    finally:
        (tmp_path / "away").rename(tokenizer)
