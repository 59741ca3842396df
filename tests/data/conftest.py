from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bouton.data import TokenDataModule, build_datamodule

WORDS = ["the", "calcium", "of", "a", "synapse", "rises", "and", "falls", "with", "every", "spike", "it", "sees,"]
WORDS += ["für", "Zürich", "\N{EM DASH}", "東京", "\N{BRAIN}"]


def story(number: int, length: int = 30) -> str:
    return " ".join(WORDS[(number * 7 + i * (i + number)) % len(WORDS)] for i in range(length)) + f" ({number})."


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A text file of 120 documents."""
    path = tmp_path / "stories.txt"
    path.write_text("\n<|endoftext|>\n".join(story(n) for n in range(120)), encoding="utf-8")
    return path


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., TokenDataModule]:
    """A DataModule over a file, with small defaults; keywords replace fields (``tokenizer`` is merged)."""

    def build(path: Path | None, seed: int = 0, **fields: Any) -> TokenDataModule:
        tokenizer = {"kind": "bytes", "vocab_size": 300, "train_bytes": 10**6, "path": None}
        tokenizer |= fields.pop("tokenizer", {})
        cfg = {"name": "text", "path": None if path is None else str(path), "separator": "<|endoftext|>", "seq_len": 16,
               "batch_size": 4, "val_fraction": 0.2, "val_tokens": None, "max_bytes": None,
               "cache_dir": str(tmp_path / "cache"), "tokenizer": tokenizer}  # fmt: skip
        return build_datamodule(cfg | fields, seed)

    return build
