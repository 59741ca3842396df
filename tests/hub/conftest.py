"""Run folders with random weights, of every kind of tokenizer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from bouton.data.tokenizers import ByteTokenizer, IntegerTokenizer, Tokenizer, train_bpe
from bouton.models.build import build

Maker = Callable[..., Path]


@pytest.fixture(scope="session")
def bpe() -> Tokenizer:
    return train_bpe(["a story about a story, and another <one>\n\n  with spaces.", "Zoë läuft"] * 20, 300)


@pytest.fixture
def make_run(tmp_path: Path, bpe: Tokenizer) -> Maker:
    def make(kind: str = "bytes", mechanism: dict[str, Any] | None = None, **model: Any) -> Path:
        tokenizer = {"bytes": ByteTokenizer(), "bpe": bpe, "integers": IntegerTokenizer(40)}[kind]
        shape = {"vocab_size": tokenizer.vocab_size, "num_layers": 2, "hidden_size": 16, "num_heads": 2,
                 "init_std": 0.3, **model}  # fmt: skip
        config = {"seed": 3, "model": shape, "mechanism": mechanism or {}, "kernels": {"backend": "auto"}}
        folder = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        # Of another seed than the configuration's: building alone does not give these weights.
        tensors = {f"body.{k}": t for k, t in build({**config, "seed": 4}).state_dict().items()}
        torch.save({"state_dict": tensors, "bouton": {"format": 1}}, folder / "checkpoints" / "best.ckpt")
        tokenizer.save(folder / "tokenizer")
        return folder

    return make
