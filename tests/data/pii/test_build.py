"""data=pii from its configuration to batches: what the labels are, what is refused, texts of one's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from bouton.data import TokenDataModule, build_datamodule
from bouton.data.pii.bio import label_names
from bouton.data.pii.synthetic import TYPES
from bouton.errors import ConfigError

CONF = Path(__file__).parents[3] / "conf" / "data" / "pii.yaml"
SMALL = {"train_texts": 60, "val_texts": 20, "test_texts": 20, "tokenizer": {"kind": "bytes"}, "seq_len": 48}


def make(seed: int = 0, **fields: Any) -> TokenDataModule:
    cfg = OmegaConf.to_container(OmegaConf.merge(OmegaConf.load(CONF), {**SMALL, **fields}))
    return build_datamodule(cfg, seed)  # type: ignore[arg-type]


def test_batches_of_synthetic_texts() -> None:
    module = make()
    assert module.label_names == label_names(TYPES)
    assert module.label_weights is None and module.evaluation_bytes() == 0
    batch = next(iter(module.train_dataloader()))
    assert batch["tokens"].shape == batch["targets"].shape == (32, 48)
    assert (batch["targets"][:, :5] == -100).all() and batch["targets"].max() < 23
    assert set(module.prepared.rows) == {"train", "val", "test"}
    assert len(list(module.test_dataloader())) > 0


def test_the_texts_are_the_same_for_every_seed_and_others_for_another_text_seed() -> None:
    first, other = make(0), make(1)
    assert first.fingerprint == other.fingerprint != make(text_seed=1).fingerprint
    assert first.fingerprint != make(delay=3).fingerprint
    batches = [next(iter(module.train_dataloader()))["tokens"] for module in (first, other)]
    assert not torch.equal(*batches)


def test_bpe_is_trained_on_the_training_texts() -> None:
    module = make(tokenizer={"kind": "bpe", "vocab_size": 300})
    assert module.vocab_size == 300
    assert module.fingerprint == make(tokenizer={"kind": "bpe", "vocab_size": 300}).fingerprint


def test_texts_of_ones_own(tmp_path: Path) -> None:
    for split in ("train", "dev", "test"):
        entry = {"text": f"{split} Bo", "spans": [[len(split) + 1, len(split) + 3, "PATIENT"]]}
        (tmp_path / f"my_{split}.jsonl").write_text(json.dumps(entry) + "\n")
    module = make(path=str(tmp_path), types=["NAME"], rename={"PATIENT": "NAME"}, delay=0, outside_weight=0.25)
    assert module.label_names == ("O", "B-NAME", "I-NAME")
    assert module.label_weights == (0.25, 1.0, 1.0)
    assert next(iter(module.val_dataloader()))["targets"][0, :8].tolist() == [-100, 0, 0, 0, 0, 1, 2, -100]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"types": []}, r"data\.types=\[\] must be a list of different types"),
        ({"types": ["PERSON", "PERSON"]}, r"data\.types="),
        ({"types": ["PERSONS"]}, "data.types: 'PERSONS' is no type of the synthetic texts; did you mean 'PERSON'"),
        ({"rename": {"X": "NAME"}}, "data.rename: 'NAME' is not among data.types"),
        ({"delay": -1}, "data.delay=-1 must be an integer >= 0"),
        ({"delay": 60}, "data.seq_len=48 is too short: it must be larger than data.delay"),
        ({"train_texts": 0}, "data.train_texts=0"),
        ({"outside_weight": 0}, "data.outside_weight=0 must be a number > 0 and <= 1"),
        ({"path": "x.tsv", "held_out": 0.5}, "data.held_out=0.5 must be a number > 0 and < 0.5"),
        ({"tokenizer": {"kind": "word"}}, "data.tokenizer.kind=word is unknown"),
    ],
)
def test_bad_fields(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make(**fields).prepare_data()
    assert "\n" not in str(caught.value)
