from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from bouton.data import NAMES, TokenDataModule, build_datamodule
from bouton.errors import ConfigError, DataError

CONF = Path(__file__).parents[2] / "conf" / "data"


def shipped(name: str, **changes: Any) -> dict[str, Any]:
    cfg = OmegaConf.load(CONF / f"{name}.yaml")
    for field, value in changes.items():
        OmegaConf.update(cfg, field.replace("__", "."), value)
    return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]


def test_every_name_has_its_yaml() -> None:
    assert sorted(path.stem for path in CONF.glob("*.yaml")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_shipped_configs_are_accepted_and_commented(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BOUTON_CACHE", str(tmp_path))
    cfg = shipped(name, **({"path": str(tmp_path)} if name in ("chat", "text") else {}))
    assert cfg["name"] == name
    assert cfg.get("cache_dir", str(tmp_path)) == str(tmp_path)
    assert isinstance(build_datamodule(cfg), TokenDataModule)
    for line in (CONF / f"{name}.yaml").read_text().splitlines():
        if not re.match(r"(#|name:|\w+:$)", line):
            assert re.search(r"\S +# \w", line), f"{name}.yaml: no comment in {line!r}"


def test_default_cache_is_in_the_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BOUTON_CACHE", raising=False)
    assert shipped("stdlib")["cache_dir"] == "~/.cache/bouton"


def test_stdlib_end_to_end(tmp_path: Path) -> None:
    cfg = shipped("stdlib", cache_dir=str(tmp_path), max_bytes=400_000, val_fraction=0.3, tokenizer__vocab_size=300)
    module = build_datamodule(cfg)
    batch = next(iter(module.train_dataloader()))
    assert batch["tokens"].shape == (16, 256)
    assert batch["tokens"].max() < module.vocab_size == 300
    assert module.evaluation_bytes() > 0


def test_mqar_end_to_end() -> None:
    module, other = (build_datamodule(shipped("mqar"), seed) for seed in (0, 1))
    train, val = next(iter(module.train_dataloader())), list(module.val_dataloader())
    assert train["tokens"].shape == (64, 64)
    assert (train["targets"] != -100).sum() == 64 * 8
    assert sum(len(batch["tokens"]) for batch in val) == 1024
    assert module.vocab_size == 256
    assert not torch.equal(next(iter(other.train_dataloader()))["tokens"], train["tokens"])
    assert torch.equal(next(iter(other.val_dataloader()))["tokens"], val[0]["tokens"])


def test_local_copy_of_a_hub_data_set(tmp_path: Path) -> None:
    folder = tmp_path / "tinystories"
    folder.mkdir()
    for split in ("train", "valid"):
        (folder / f"{split}.txt").write_text("".join(f"{split} story {n}.\n<|endoftext|>\n" for n in range(20)))
    cfg = shipped("tinystories", path=str(folder), cache_dir=str(tmp_path / "c"), seq_len=8, tokenizer__kind="bytes")
    module = build_datamodule(cfg)
    assert module.tokenizer.decode(next(iter(module.val_dataloader()))["targets"][0].tolist()) == "valid st"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "tinystory"}, "data.name=tinystory is unknown; did you mean 'tinystories'"),
        ({"path": None}, "data.path is not set"),
        ({"seq_len": 0}, "data.seq_len=0 must be an integer >= 1"),
        ({"seq_len": "x"}, "data.seq_len=x"),
        ({"batch_size": -2}, "data.batch_size=-2"),
        ({"val_tokens": 0}, "data.val_tokens=0 .* or null"),
        ({"max_bytes": 1.5}, "data.max_bytes=1.5"),
        ({"val_fraction": 1.0}, "data.val_fraction=1.0 must be a number > 0 and < 1"),
        ({"tokenizer": {"kind": "bpee"}}, "data.tokenizer.kind=bpee is unknown; did you mean 'bpe'"),
        ({"tokenizer": {"kind": "bpe", "vocab_size": 256}}, "data.tokenizer.vocab_size=256 must be an integer >= 257"),
    ],
)
def test_bad_fields(fields: dict[str, Any], message: str, corpus: Path, make: Callable[..., TokenDataModule]) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make(fields.pop("path", corpus), **fields)
    assert "\n" not in str(caught.value)


def test_missing_file_and_bad_tokenizer(make: Callable[..., TokenDataModule], corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        make(tmp_path / "nowhere").prepare_data()
    with pytest.raises(DataError, match=r"data\.tokenizer\.path="):
        make(corpus, tokenizer={"kind": "gpt2", "path": str(tmp_path / "nowhere")}).prepare_data()


@pytest.mark.parametrize(("field", "value"), [("query_power", 0), ("num_pairs", 0), ("val_rows", None)])
def test_bad_mqar_fields(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"data\.{field}="):
        build_datamodule(shipped("mqar", **{field: value}))
