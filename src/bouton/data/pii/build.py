"""From the configuration ``data`` with ``name: pii`` to the DataModule of labelled texts."""

from __future__ import annotations

import functools
import hashlib

from bouton.data.build import Config, check_tokenizer, given_tokenizer, integer
from bouton.data.module import Prepared, TokenDataModule
from bouton.data.pii.bio import Document, label_names
from bouton.data.pii.files import read_splits
from bouton.data.pii.rows import LabelledRows
from bouton.data.pii.synthetic import SPLITS, TYPES, generate
from bouton.data.tokenizers import train_bpe
from bouton.errors import ConfigError, suggest

# What other corpora call these types.
_NAMES = {
    "person": "PERSON", "PER": "PERSON", "EMAIL_ADDRESS": "EMAIL", "PHONE_NUMBER": "PHONE", "STREET_ADDRESS": "ADDRESS",
    "DATE_TIME": "DATE", "US_SSN": "ID", "US_DRIVER_LICENSE": "ID", "CREDIT_CARD": "CARD", "ORGANIZATION": "ORG",
    "DOMAIN_NAME": "URL", "IP_ADDRESS": "IP", "GPE": "LOCATION", "LOC": "LOCATION", "location": "LOCATION",
}  # fmt: skip


def build_pii(cfg: Config, seed: int) -> TokenDataModule:
    """The DataModule; see :func:`bouton.data.build.build_datamodule`.

    Raises:
        ConfigError: a field is unknown, missing or out of range.
    """
    types = entity_types(cfg)
    renamed(cfg)
    integer(cfg, "delay", 0)
    if cfg.get("path") is None:
        if unknown := [name for name in types if name not in TYPES]:
            raise ConfigError(
                f"data.types: '{unknown[0]}' is no type of the synthetic texts; {suggest(unknown[0], TYPES)}"
            )
        for split in SPLITS:
            integer(cfg, f"{split}_texts", 1)
        integer(cfg, "text_seed", 0)
    else:
        share = cfg["held_out"]
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 0.5:
            raise ConfigError(f"data.held_out={share} must be a number > 0 and < 0.5, for validation and test each")
    weight = cfg.get("outside_weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight <= 1:
        raise ConfigError(f"data.outside_weight={weight} must be a number > 0 and <= 1")
    check_tokenizer(cfg["tokenizer"])
    if cfg["tokenizer"]["kind"] == "words":
        raise ConfigError("data.tokenizer.kind=words is not valid here: it loses where in the text a word stands")
    return TokenDataModule(
        functools.partial(_prepare, cfg, types), name="pii", seq_len=integer(cfg, "seq_len", 1),
        batch_size=integer(cfg, "batch_size", 1), val_tokens=integer(cfg, "val_tokens", 1, optional=True), seed=seed,
        label_names=label_names(types),
        label_weights=None if weight == 1 else (float(weight), *[1.0] * (2 * len(types))),
    )  # fmt: skip


def entity_types(cfg: Config) -> tuple[str, ...]:
    """``data.types``, checked."""
    types = cfg.get("types")
    if not isinstance(types, list | tuple) or not types or len(set(types)) < len(types):
        raise ConfigError(f"data.types={types} must be a list of different types, as [PERSON, EMAIL]")
    return tuple(str(name) for name in types)


def renamed(cfg: Config) -> dict[str, str]:
    """Name in files -> type, for all names that count.

    Raises:
        ConfigError: ``data.rename`` names a type that is not in ``data.types``.
    """
    types = entity_types(cfg)
    further = {str(theirs): str(ours) for theirs, ours in (cfg.get("rename") or {}).items()}
    if unknown := [ours for ours in further.values() if ours not in types]:
        raise ConfigError(f"data.rename: '{unknown[0]}' is not among data.types; {suggest(unknown[0], types)}")
    return {theirs: ours for theirs, ours in _NAMES.items() if ours in types} | {name: name for name in types} | further


def documents(cfg: Config) -> dict[str, list[Document]]:
    """The texts of the three splits."""
    if cfg.get("path") is not None:
        return read_splits(str(cfg["path"]), renamed(cfg), float(cfg["held_out"]))
    return {split: generate(split, int(cfg[f"{split}_texts"]), int(cfg["text_seed"])) for split in SPLITS}


def _prepare(cfg: Config, types: tuple[str, ...]) -> Prepared:
    splits = documents(cfg)
    texts = (document.text for document in splits["train"])
    tokenizer = given_tokenizer(cfg["tokenizer"]) or train_bpe(texts, int(cfg["tokenizer"]["vocab_size"]))
    rows = {
        split: LabelledRows(found, tokenizer, types, seq_len=int(cfg["seq_len"]), delay=int(cfg["delay"]))
        for split, found in splits.items()
    }
    digest = hashlib.sha256(tokenizer.fingerprint.encode())
    for split in SPLITS:
        digest.update(rows[split].tokens.tobytes() + rows[split].targets.tobytes())
    return Prepared(tokenizer, digest.hexdigest()[:16], None, dict(rows))
