"""From the configuration ``data`` to a DataModule, with every field checked."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bouton.data.chat import MARKERS
from bouton.data.chat_source import ChatSource, hub_chat, local_chat
from bouton.data.chat_store import prepare_chat
from bouton.data.hub import HubDataset
from bouton.data.module import Prepared, TokenDataModule
from bouton.data.mqar import MQARRows
from bouton.data.prepare import prepare_store, prepare_trained
from bouton.data.sources import HubSource, Source, local_source, stdlib_source
from bouton.data.tokenizers import (
    KINDS,
    SMALLEST_BPE,
    SMALLEST_WORDS,
    ByteTokenizer,
    IntegerTokenizer,
    Tokenizer,
    load_bpe,
    load_gpt2,
    load_tokenizer,
)
from bouton.errors import ConfigError, suggest

HUB_NAMES = ("fineweb_edu", "openwebtext", "shakespeare", "tinystories")
CHAT_NAMES = ("alpaca", "chat", "dolly", "oasst", "smoltalk")
NAMES = (*HUB_NAMES, *CHAT_NAMES, "curriculum", "mqar", "pii", "stdlib", "text")
SAVED = "saved"  # data.tokenizer.kind: the tokenizer of a run, at data.tokenizer.path

Config = Mapping[str, Any]


def build_datamodule(cfg: Config, seed: int = 0) -> TokenDataModule:
    """The DataModule that the config group ``data`` describes. Nothing is read or written yet.

    Args:
        cfg: the node ``cfg.data``, or any mapping with the same fields.
        seed: order of the training samples (and content of generated ones).

    Raises:
        ConfigError: a field is unknown, missing or out of range.
    """
    name = cfg.get("name")
    if name not in NAMES:
        raise ConfigError(f"data.name={name} is unknown; {suggest(str(name), NAMES)}")
    if name == "curriculum":
        from bouton.data.build_curriculum import build_curriculum

        return build_curriculum(cfg, seed)
    if name == "pii":
        from bouton.data.pii.build import build_pii

        return build_pii(cfg, seed)
    seq_len, batch_size = integer(cfg, "seq_len", 1), integer(cfg, "batch_size", 1)
    val_tokens = integer(cfg, "val_tokens", 1, optional=True)
    if name == "mqar":
        rows = {"train": _mqar(cfg, seq_len, seed, 0), "val": _mqar(cfg, seq_len, 0, 1)}
        prepare = functools.partial(_prepare_mqar, cfg, rows)
    elif name in CHAT_NAMES:
        check_text(cfg)
        check_where(cfg)
        prepare = functools.partial(_prepare_chat, cfg)
    else:
        check_text(cfg)
        prepare = functools.partial(_prepare_text, cfg)
    return TokenDataModule(
        prepare, name=str(name), seq_len=seq_len, batch_size=batch_size, val_tokens=val_tokens, seed=seed
    )


def check_text(cfg: Config) -> None:
    """Everything that can be said before the text is read."""
    if cfg["name"] in ("chat", "text") and not cfg.get("path"):
        raise ConfigError(f"data.path is not set: data={cfg['name']} needs data.path=<file, folder or glob>")
    fraction = cfg["val_fraction"]
    if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 < fraction < 1:
        raise ConfigError(f"data.val_fraction={fraction} must be a number > 0 and < 1")
    integer(cfg, "max_bytes", 1, optional=True)
    check_tokenizer(tokenizer := cfg["tokenizer"])
    if tokenizer["kind"] in ("bpe", "words") and not tokenizer.get("path"):
        integer(tokenizer, "train_bytes", 1, prefix="data.tokenizer.")


def check_tokenizer(cfg: Config) -> None:
    """Refuse a ``data.tokenizer`` that cannot be made."""
    if cfg["kind"] == SAVED and not cfg.get("path"):
        raise ConfigError("data.tokenizer.path is not set: data.tokenizer.kind=saved needs the tokenizer of a run")
    if cfg["kind"] not in (*KINDS, SAVED):
        raise ConfigError(f"data.tokenizer.kind={cfg['kind']} is unknown; {suggest(str(cfg['kind']), KINDS)}")
    if cfg["kind"] == "bpe" and not cfg.get("path"):
        integer(cfg, "vocab_size", SMALLEST_BPE, prefix="data.tokenizer.")
    if cfg["kind"] == "words":
        integer(cfg, "vocab_size", SMALLEST_WORDS, prefix="data.tokenizer.")
        if cfg.get("path"):
            raise ConfigError(
                f"data.tokenizer.path={cfg['path']} is not valid with kind=words, those of the training text; "
                f"the words of a run: kind={SAVED}"
            )


def check_where(cfg: Config, prefix: str = "data") -> None:
    """Refuse a ``where`` that is no mapping."""
    if (where := cfg.get("where")) is not None and not isinstance(where, Mapping):
        raise ConfigError(f"{prefix}.where={where} must map columns to values, as {{lang: en}}, or be null")


def _prepare_text(cfg: Config) -> Prepared:
    root = Path(cfg["cache_dir"]).expanduser()
    source = build_source(cfg, root)
    tokenizer = build_tokenizer(cfg["tokenizer"], source, root)
    folder = prepare_store(source, tokenizer, root)
    return Prepared(tokenizer, folder.name, folder, {})


def _prepare_chat(cfg: Config) -> Prepared:
    root = Path(cfg["cache_dir"]).expanduser()
    source = chat_source(cfg, root)
    tokenizer = build_tokenizer(cfg["tokenizer"], source, root, MARKERS)
    folder = prepare_chat(source, tokenizer, root)
    return Prepared(tokenizer, folder.name, folder, {})


def chat_source(cfg: Config, root: Path, prefix: str = "data") -> ChatSource:
    """The conversations that ``cfg``, the node ``prefix`` of the configuration, names: a local path, else the hub."""
    where, max_bytes, val_fraction = cfg.get("where"), cfg.get("max_bytes"), float(cfg["val_fraction"])
    if cfg.get("path"):
        return local_chat(
            cfg["name"], str(cfg["path"]), root, where=where, max_bytes=max_bytes, val_fraction=val_fraction,
            prefix=prefix,
        )  # fmt: skip
    return hub_chat(cfg["name"], _hub(cfg["hub"], prefix), where=where, max_bytes=max_bytes, val_fraction=val_fraction)


def build_source(cfg: Config, root: Path, prefix: str = "data") -> Source:
    """The text that ``cfg``, the node ``prefix`` of the configuration, names: a local path, else the hub."""
    name, max_bytes, val_fraction = cfg["name"], cfg.get("max_bytes"), float(cfg["val_fraction"])
    if name == "stdlib":
        return stdlib_source(root, max_bytes=max_bytes, val_fraction=val_fraction)
    if cfg.get("path"):
        return local_source(
            name, str(cfg["path"]), root, separator=cfg.get("separator") or None, max_bytes=max_bytes,
            val_fraction=val_fraction, field=f"{prefix}.path",
        )  # fmt: skip
    return HubSource(name, _hub(cfg["hub"], prefix), max_bytes=max_bytes, val_fraction=val_fraction)


def _hub(hub: Config, prefix: str) -> HubDataset:
    return HubDataset(
        repository=hub["repository"],
        subset=hub.get("subset"),
        revision=hub.get("revision"),
        files=dict(hub["files"]) if hub.get("files") else None,
        text_field=hub.get("text_field", ""),
        splits={ours: theirs for ours, theirs in hub["splits"].items() if theirs is not None},
        node=prefix,
    )


def build_tokenizer(cfg: Config, source: Source, root: Path, specials: Sequence[str] = ()) -> Tokenizer:
    """The tokenizer of ``data.tokenizer``; BPE without a path is trained on ``source``, with these special tokens."""
    if (given := given_tokenizer(cfg)) is not None:
        return given
    if cfg["kind"] == "words":
        if specials:
            raise ConfigError("data.tokenizer.kind=words has no markers of turns, which conversations need: use bpe")
        return prepare_trained("words", source, int(cfg["vocab_size"]), int(cfg["train_bytes"]), root)
    return prepare_trained("bpe", source, int(cfg["vocab_size"]), int(cfg["train_bytes"]), root, specials)


def given_tokenizer(cfg: Config) -> Tokenizer | None:
    """The tokenizer of ``data.tokenizer``; None if it must be trained."""
    if cfg["kind"] == SAVED:
        return load_tokenizer(Path(cfg["path"]).expanduser())
    if cfg["kind"] == "bytes":
        return ByteTokenizer()
    if cfg["kind"] == "gpt2":
        return load_gpt2(cfg.get("path"))
    return load_bpe(cfg["path"]) if cfg.get("path") and cfg["kind"] == "bpe" else None


def _mqar(cfg: Config, seq_len: int, seed: int, split: int) -> MQARRows:
    power = cfg["query_power"]
    if isinstance(power, bool) or not isinstance(power, int | float) or not 0 < power <= 1:
        raise ConfigError(f"data.query_power={power} must be a number > 0 and <= 1 (1: uniform)")
    return MQARRows(
        num_pairs=integer(cfg, "num_pairs", 1),
        vocab_size=integer(cfg, "vocab_size", 4),
        seq_len=seq_len,
        query_power=float(power),
        random_fill=bool(cfg["random_fill"]),
        seed=seed,
        split=split,
        num_rows=integer(cfg, "val_rows" if split else "train_rows", 1),
    )


def _prepare_mqar(cfg: Config, rows: dict[str, Any]) -> Prepared:
    fields = ("num_pairs", "vocab_size", "query_power", "random_fill", "train_rows")
    text = repr([(name, cfg[name]) for name in fields])
    return Prepared(IntegerTokenizer(cfg["vocab_size"]), hashlib.sha256(text.encode()).hexdigest()[:16], None, rows)


def integer(cfg: Config, field: str, low: int, *, optional: bool = False, prefix: str = "data.") -> Any:
    value = cfg.get(field)
    if value is None and optional:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ConfigError(f"{prefix}{field}={value} must be an integer >= {low}" + (" or null" if optional else ""))
    return value
