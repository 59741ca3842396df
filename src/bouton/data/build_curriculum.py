"""From ``data=curriculum`` to a DataModule: sources, one tokenizer over all of them, phases."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bouton.data.build import Config, build_source, build_tokenizer, chat_source, check_text, check_where, integer
from bouton.data.chat import MARKERS
from bouton.data.chat_source import ChatSource
from bouton.data.chat_store import prepare_chat
from bouton.data.curriculum import CurriculumDataModule
from bouton.data.documents import Piece
from bouton.data.module import Prepared
from bouton.data.phases import BEGINS, BLOCK, Phase
from bouton.data.prepare import prepare_store
from bouton.data.sources import Source, capped
from bouton.errors import ConfigError, suggest

FORMATS = ("text", "chat")
STDLIB = "stdlib"  # a source of this name needs no path: it is the Python standard library, as data=stdlib
_SOURCE_FIELDS = ("path", "format", "where", "separator", "max_bytes", "hub")
_PHASE_FIELDS = ("length", "begin", "weights")


def build_curriculum(cfg: Config, seed: int) -> CurriculumDataModule:
    """The DataModule of ``data=curriculum``. Nothing is read or written yet.

    Raises:
        ConfigError: a field is unknown, missing or out of range.
    """
    seq_len = integer(cfg, "seq_len", 1)
    sources = _sources(cfg)
    phases = _phases(cfg, seq_len, sources)
    replay = cfg["replay"]
    if isinstance(replay, bool) or not isinstance(replay, int | float) or not 0 <= replay < 1:
        raise ConfigError(f"data.replay={replay} must be a number >= 0 and < 1")
    weights = cfg.get("val_weights") or dict.fromkeys(sources, 1.0)
    return CurriculumDataModule(
        functools.partial(_prepare, cfg, sources),
        name=str(cfg["name"]),
        seq_len=seq_len,
        batch_size=integer(cfg, "batch_size", 1),
        val_tokens=integer(cfg, "val_tokens", 1),
        seed=seed,
        phases=phases,
        replay=float(replay),
        val_weights=_weights(weights, "data.val_weights", sources, cfg["sources"]),
        phase_val_tokens=integer(cfg, "phase_val_tokens", 1),
    )


def _sources(cfg: Config) -> dict[str, Config]:
    """Name -> fields, as those of a data set of its own; what is null is left out."""
    found: dict[str, Config] = {}
    for name, given in cfg["sources"].items():
        if given is None:
            continue
        prefix = f"data.sources.{name}"
        if not isinstance(given, Mapping):
            raise ConfigError(f"{prefix}={given} must be a mapping with path or hub, or null to leave it out")
        for field in given:
            if field not in _SOURCE_FIELDS:
                raise ConfigError(f"{prefix}.{field} is unknown; {suggest(str(field), _SOURCE_FIELDS)}")
        if name != STDLIB and not given.get("path") and not given.get("hub"):
            raise ConfigError(f"{prefix}.path is not set: {prefix}.path=<file, folder or glob>, or {prefix}=null")
        kind = given.get("format", "text")
        if kind not in FORMATS:
            raise ConfigError(f"{prefix}.format={kind} is unknown; {suggest(str(kind), FORMATS)}")
        check_where(given, prefix)
        integer(given, "max_bytes", 1, optional=True, prefix=f"{prefix}.")
        found[str(name)] = {
            "separator": None, "path": None, "hub": None, "max_bytes": None, "format": "text", "where": None,
            **given, "name": str(name), "val_fraction": cfg["val_fraction"],
        }  # fmt: skip
    if not found:
        raise ConfigError("data.sources is empty: data=curriculum needs at least one source")
    check_text({**cfg, "max_bytes": None})
    return found


def _phases(cfg: Config, seq_len: int, sources: Mapping[str, Any]) -> list[Phase]:
    phases = []
    for name, given in cfg["phases"].items():
        if given is None:
            continue
        prefix = f"data.phases.{name}"
        if not isinstance(given, Mapping):
            raise ConfigError(f"{prefix}={given} must be a mapping with length and weights, or null to leave it out")
        for field in given:
            if field not in _PHASE_FIELDS:
                raise ConfigError(f"{prefix}.{field} is unknown; {suggest(str(field), _PHASE_FIELDS)}")
        length = integer(given, "length", 1, prefix=f"{prefix}.")
        if seq_len % length:
            raise ConfigError(f"{prefix}.length={length} must divide data.seq_len={seq_len}: rows are cut into pieces")
        begin = given.get("begin", "anywhere")
        if begin not in BEGINS:
            raise ConfigError(f"{prefix}.begin={begin} is unknown; {suggest(str(begin), BEGINS)}")
        weights = _weights(given.get("weights"), f"{prefix}.weights", sources, cfg["sources"])
        phases.append(Phase(str(name), length, begin, weights))
    if not phases:
        raise ConfigError("data.phases is empty: data=curriculum needs at least one phase")
    return phases


def _weights(given: Any, field: str, sources: Mapping[str, Any], removed: Container[str]) -> dict[str, float]:
    """Source -> share, without those of weight 0 and those of ``removed`` sources, which are null."""
    if not isinstance(given, Mapping):
        raise ConfigError(f"{field}={given} must map sources to shares; known: {', '.join(sources)}")
    found = {}
    for source, weight in given.items():
        if weight is None or (source in removed and source not in sources):
            continue
        if isinstance(weight, bool) or not isinstance(weight, int | float) or weight < 0:
            raise ConfigError(f"{field}.{source}={weight} must be a number >= 0")
        if weight == 0:
            continue
        if source not in sources:
            raise ConfigError(f"{field}.{source}: there is no such source; {suggest(str(source), sources)}")
        found[str(source)] = float(weight)
    total = sum(found.values())
    if not total:
        raise ConfigError(f"{field}: no source has a share > 0; known: {', '.join(sources)}")
    for source, weight in found.items():
        if weight / total * BLOCK < 1:
            raise ConfigError(f"{field}.{source}={weight} is below 1/{BLOCK} of all shares: raise it or set it to 0")
    return found


def _prepare(cfg: Config, fields: Mapping[str, Config]) -> Prepared:
    root = Path(cfg["cache_dir"]).expanduser()
    sources = {name: _source(given, root) for name, given in fields.items()}
    together = _Together(str(cfg["name"]), list(sources.values()), int(cfg["tokenizer"]["train_bytes"]))
    chats = any(isinstance(source, ChatSource) for source in sources.values())
    tokenizer = build_tokenizer(cfg["tokenizer"], together, root, MARKERS if chats else ())
    folders = {
        name: prepare_chat(source, tokenizer, root)
        if isinstance(source, ChatSource)
        else prepare_store(source, tokenizer, root)
        for name, source in sources.items()
    }
    names = json.dumps({name: folder.name for name, folder in sorted(folders.items())})
    return Prepared(tokenizer, hashlib.sha256(names.encode()).hexdigest()[:16], None, {}, folders)


def _source(given: Config, root: Path) -> Source | ChatSource:
    build = chat_source if given["format"] == "chat" else build_source
    return build(given, root, f"data.sources.{given['name']}")


class _Together:
    """The training text that one tokenizer for all sources is trained on: equally many bytes of each."""

    def __init__(self, name: str, sources: Sequence[Source | ChatSource], total_bytes: int) -> None:
        self.name = name
        self.total_bytes: int | None = total_bytes
        self.description = {"sources": [source.fingerprint for source in sources]}
        self.fingerprint = hashlib.sha256(json.dumps(self.description).encode()).hexdigest()
        self._sources = list(sources)
        self._each = max(1, total_bytes // len(self._sources))

    def pieces(self) -> Iterator[tuple[str, Piece]]:
        for source in self._sources:
            training = (piece for split, piece in source.pieces() if split == "train")
            yield from (("train", piece) for piece in capped(training, self._each))
