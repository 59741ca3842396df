"""Small trained runs: one on made-up stories, one on multi-query associative recall."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

import bouton
from bouton.runs import Run
from bouton.training import train

NAMES = ("Tim", "Anna", "Ben", "Lily", "Sam", "Mia")
ANIMALS = ("dog", "cat", "bird", "frog", "horse", "mouse")
PLACES = ("park", "house", "garden", "river", "forest", "school")
FEELINGS = ("happy", "sad", "tired", "brave", "proud", "scared")


def story(number: int) -> str:
    draw = random.Random(number)
    name, animal, place, feeling = (draw.choice(words) for words in (NAMES, ANIMALS, PLACES, FEELINGS))
    return (
        f"Once upon a time, {name} had a little {animal}. One day {name} went with it to the {place}. "
        f"The {animal} was very {feeling}. {name} looked for a friend and found another {animal}. "
        f"They played all day in the {place}. In the end everyone was {feeling}."
    )


@pytest.fixture(scope="session")
def story_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty steps on stories of about 60 tokens, in rows of 32: carried state makes a difference."""
    root = tmp_path_factory.mktemp("stories")
    for split, numbers in (("train", range(400)), ("valid", range(1000, 1080))):
        (root / f"{split}.txt").write_text("<|endoftext|>".join(story(number) for number in numbers))
    return _train(
        root, "data=text", f"data.path={root}/*.txt", f"data.cache_dir={root}/cache", "data.tokenizer.vocab_size=320",
        "data.seq_len=32", "data.val_tokens=2048", "mechanism=hebb+sparse", "trainer.max_steps=60",
    )  # fmt: skip


@pytest.fixture(scope="session")
def recall_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("recall")
    return _train(
        root, "data=mqar", "data.num_pairs=2", "data.vocab_size=16", "data.seq_len=16", "data.val_rows=64",
        "mechanism=none", "trainer.max_steps=40",
    )  # fmt: skip


def _train(root: Path, *overrides: str) -> Path:
    folder = root / "run"
    cfg = bouton.compose(
        *overrides, "model=tiny", "model.hidden_size=32", "optimizer=muon", "data.batch_size=8", "trainer.val_every=20",
        "trainer.accelerator=cpu", "kernels=torch", f"run_dir={folder}",
    )  # fmt: skip
    train(cfg)
    return folder


@pytest.fixture
def stories(story_run: Path) -> Iterator[Run]:
    """The run, without results of other tests."""
    _forget(story_run)
    yield bouton.load(story_run, device="cpu", kernels="torch")
    _forget(story_run)


@pytest.fixture
def recall(recall_run: Path) -> Iterator[Run]:
    _forget(recall_run)
    yield bouton.load(recall_run, device="cpu", kernels="torch")
    _forget(recall_run)


def _forget(folder: Path) -> None:
    for file in (folder / "evaluation").rglob("*"):
        if file.is_file():
            file.unlink()
