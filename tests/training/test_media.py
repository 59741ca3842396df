"""Pictures and samples of a real run: files, loggers, and a training that does not notice them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import bouton
from bouton.errors import ConfigError
from bouton.training import train
from bouton.training.callbacks.media import add_sample, read_samples


def run(folder: Path, *words: str) -> Path:
    data = folder.parent / "text.txt"
    data.write_text("<|endoftext|>".join(f"the story of {i} and {i + 1}." for i in range(400)))
    cfg = bouton.compose(
        "mechanism=hebb+presyn", "model=tiny", "model.hidden_size=32", "data=text", f"data.path={data}",
        f"data.cache_dir={folder.parent}/cache", "data.tokenizer.kind=bytes", "data.seq_len=32", "data.batch_size=2",
        "data.val_tokens=256", "trainer=cpu", "trainer.max_steps=4", "trainer.val_every=2", "trainer.log_every=1",
        "callbacks.progress.refresh_every=null", "callbacks.throughput.mfu=false", "kernels=torch", *words,
        f"run_dir={folder}",
    )  # fmt: skip
    train(cfg)
    return folder


MEDIA = ("callbacks=media", "callbacks.media.tokens=8", "callbacks.media.sample_tokens=5")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """With media and every logger, and without."""
    root = tmp_path_factory.mktemp("media")
    shown = run(root / "shown", *MEDIA, "logger=[tensorboard,wandb]", "logger.wandb.mode=offline")
    return shown, run(root / "plain")


def test_every_validation_has_every_declared_picture(runs: tuple[Path, Path]) -> None:
    files = sorted(p.relative_to(runs[0] / "media").as_posix() for p in (runs[0] / "media").rglob("*.png"))
    names = [f"hebb/{n}_norm_layer{i}" for n in ("fast", "slow") for i in (0, 1)]
    names += [f"presyn/{n}_layer{i}" for n in ("calcium", "pool") for i in (0, 1)]
    assert files == sorted(f"{name}/{step:08d}.png" for name in names for step in (2, 4))
    assert not (runs[1] / "media").exists()


def test_training_does_not_notice(runs: tuple[Path, Path]) -> None:
    for name in ("metrics.csv", "vitals.csv"):
        assert (runs[0] / name).read_text() == (runs[1] / name).read_text()


def test_samples_are_kept_by_step_and_every_run_has_one(runs: tuple[Path, Path]) -> None:
    assert [line["step"] for line in read_samples(runs[0])] == [2, 4]
    (last,) = read_samples(runs[1])
    assert last["step"] == 4 and last["text"] + "\n" == (runs[1] / "sample.txt").read_text()


def test_tensorboard_has_the_same_names(runs: tuple[Path, Path]) -> None:
    events = EventAccumulator(str(runs[0] / "tensorboard"), size_guidance={"images": 0, "tensors": 0})
    events.Reload()
    tags: dict[str, Any] = events.Tags()
    assert "media/presyn/pool_layer0" in tags["images"]
    assert [event.step for event in events.Images("media/hebb/fast_norm_layer1")] == [2, 4]
    assert "samples/text/text_summary" in tags["tensors"]
    assert {"train/loss", "val/loss", "train/lr", "vitals/presyn/pool", "cost/tokens_per_second"} <= set(
        tags["scalars"]
    )


def test_wandb_has_the_same_names(runs: tuple[Path, Path]) -> None:
    stored = list((runs[0] / "wandb").glob("offline-run-*/files/media"))
    assert len(stored) == 1
    images = {p.parent.relative_to(stored[0]).as_posix() for p in stored[0].rglob("*.png")}
    assert "images/media/presyn" in images
    tables = [json.loads(p.read_text()) for p in stored[0].rglob("*.table.json")]
    assert {row[0] for table in tables for row in table["data"]} == {"2", "4"}


def test_a_resume_repeats_the_samples_of_its_steps(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        add_sample(tmp_path, step, f"text {step}")
    add_sample(tmp_path, 20, "again")
    assert read_samples(tmp_path) == [{"step": 10, "text": "text 10"}, {"step": 20, "text": "again"}]


@pytest.mark.parametrize("field", ["every", "tokens", "sample_tokens"])
def test_bad_values_are_refused(tmp_path: Path, field: str) -> None:
    with pytest.raises(ConfigError, match=rf"callbacks\.media\.{field} = 0 is not valid"):
        run(tmp_path / "run", "callbacks=media", f"callbacks.media.{field}=0")


def test_every_second_validation(tmp_path: Path) -> None:
    words = ("callbacks=media", "callbacks.media.tokens=4", "callbacks.media.sample_tokens=null")
    folder = run(tmp_path / "run", *words, "callbacks.media.every=2", "trainer.val_every=1")
    assert sorted(p.stem for p in (folder / "media/presyn/pool_layer0").iterdir()) == ["00000001", "00000003"]
