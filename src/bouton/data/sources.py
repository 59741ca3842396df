"""Where text comes from: a stream of pieces, each assigned to a split, and a fingerprint of all of it.

The splits come from the source itself where it has them (files named train / valid / test; the hub's splits).
Otherwise whole documents are assigned by a hash of their text, so equal documents never straddle the splits and the
assignment does not depend on their order; or, where there are too few documents for that (Shakespeare is one), the last
``val_fraction`` of the text is held out.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bouton.data.documents import Piece, find_files, pieces_of, read_pieces
from bouton.data.hub import HubDataset
from bouton.errors import DataError
from bouton.files import write_text

_SPLIT_WORDS = {"train": "train", "training": "train", "valid": "val", "validation": "val", "val": "val", "dev": "val",
                "test": "test"}  # fmt: skip
_FEWEST_VAL_DOCUMENTS = 5  # expected; with fewer, a split by position

# Parts of the standard library that are tests, tables, demonstrations, or the same text twice.
_STDLIB_SKIP = {"site-packages", "dist-packages", "test", "tests", "idlelib", "encodings", "pydoc_data", "lib2to3",
                "turtledemo", "__pycache__", "_bundled"}  # fmt: skip


class Source(Protocol):
    """Text that can be read from the start again and again, always the same.

    Attributes:
        name: as in ``data.name``.
        fingerprint: hash of the text and of how it is split.
        description: what the metadata of the token files say of it.
        total_bytes: UTF-8 bytes of all splits where known before reading.
    """

    name: str
    fingerprint: str
    description: dict[str, Any]
    total_bytes: int | None

    def pieces(self) -> Iterator[tuple[str, Piece]]:
        """(split, (text, whether a document begins)) in an order that never changes."""
        ...


@dataclass(frozen=True)
class Survey:
    """What one pass over a stream of pieces tells."""

    digest: str
    documents: int
    num_bytes: int


def survey(pieces: Iterator[Piece]) -> Survey:
    """Hash, documents and UTF-8 bytes of a stream."""
    digest, documents, num_bytes = hashlib.sha256(), 0, 0
    for text, first in pieces:
        data = text.encode("utf-8", errors="replace")
        digest.update(b"\1" if first else b"\0")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
        documents += first
        num_bytes += len(data)
    return Survey(digest.hexdigest(), documents, num_bytes)


class LocalSource:
    """Files of this machine, in groups: one group that is split here, or one group per split."""

    def __init__(
        self,
        name: str,
        groups: Mapping[str, list[Path]],
        cache_dir: Path,
        *,
        separator: str | None,
        max_bytes: int | None,
        val_fraction: float,
        origin: str,
    ) -> None:
        """
        Args:
            groups: split -> files, or {"all": files} to be split by ``val_fraction``.
            cache_dir: where the survey of unchanged files is remembered.
            max_bytes: read no more than that of each group; None for all.
            origin: the field and value that named the files, for error messages.
        """
        self.name = name
        self._groups = dict(groups)
        self._separator = separator
        self._max_bytes = max_bytes
        self._val_fraction = val_fraction
        surveys = {group: self._survey(group, cache_dir) for group in self._groups}
        for group, found in surveys.items():
            if found.num_bytes == 0:
                raise DataError(f"{origin} holds no text" + ("" if group == "all" else f" for the split '{group}'"))
        self._num_bytes = sum(found.num_bytes for found in surveys.values())
        self.total_bytes: int | None = self._num_bytes
        self._rule = "own files"
        if "all" in surveys:
            many = surveys["all"].documents * val_fraction >= _FEWEST_VAL_DOCUMENTS
            self._rule = "document hash" if many else "position"
        self.description = {
            "name": name,
            "split": self._rule,
            "val_fraction": val_fraction if "all" in surveys else None,
            "groups": {
                group: {"sha256": s.digest, "documents": s.documents, "bytes": s.num_bytes}
                for group, s in surveys.items()
            },
        }
        self.fingerprint = hashlib.sha256(json.dumps(self.description, sort_keys=True).encode()).hexdigest()

    def pieces(self) -> Iterator[tuple[str, Piece]]:
        for group in self._groups:
            pieces = self._read(group)
            if group != "all":
                yield from ((group, piece) for piece in pieces)
            elif self._rule == "document hash":
                yield from split_by_document(pieces, self._val_fraction)
            else:
                yield from split_by_position(pieces, int(self._num_bytes * (1 - self._val_fraction)))

    def _read(self, group: str) -> Iterator[Piece]:
        return capped(read_pieces(self._groups[group], self._separator), self._max_bytes)

    def _survey(self, group: str, cache_dir: Path) -> Survey:
        key = [self._separator, self._max_bytes]
        return remembered(self._groups[group], key, cache_dir, lambda: survey(self._read(group)))


def remembered(files: list[Path], key: list[Any], cache_dir: Path, look: Callable[[], Survey]) -> Survey:
    """What ``look`` finds in ``files``; that of unchanged ones (path, size, time) is remembered, as it reads them all.

    Args:
        key: what else the survey depends on.
    """
    facts = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    state = json.dumps([1, facts, *key])
    memo = cache_dir / "surveys" / f"{hashlib.sha256(state.encode()).hexdigest()[:32]}.json"
    try:
        return Survey(**json.loads(memo.read_text()))
    except (OSError, ValueError, TypeError):
        pass
    found = look()
    try:
        memo.parent.mkdir(parents=True, exist_ok=True)
        write_text(memo, json.dumps(vars(found)))
    except OSError:
        pass  # only costs time at the next start; writing the tokens will say what is wrong with the disk
    return found


class HubSource:
    """A data set streamed from the hub. Its text is not hashed: a prepared copy must open without a network."""

    def __init__(self, name: str, dataset: HubDataset, *, max_bytes: int | None, val_fraction: float) -> None:
        self.name = name
        self.total_bytes = max_bytes
        self._dataset = dataset
        self._max_bytes = max_bytes
        self._val_fraction = val_fraction
        own = "val" in dataset.splits
        self.description = {
            "name": name,
            "split": "own files" if own else "document hash",
            "val_fraction": None if own else val_fraction,
            "max_bytes": max_bytes,
            "hub": dataset.facts(),
        }
        self.fingerprint = hashlib.sha256(json.dumps(self.description, sort_keys=True).encode()).hexdigest()

    def pieces(self) -> Iterator[tuple[str, Piece]]:
        for split in self._dataset.splits:
            pieces = capped(pieces_of(self._dataset.documents(split)), self._max_bytes)
            if len(self._dataset.splits) == 1:
                yield from split_by_document(pieces, self._val_fraction)
            else:
                yield from ((split, piece) for piece in pieces)


def capped(pieces: Iterator[Piece], max_bytes: int | None) -> Iterator[Piece]:
    """The first ``max_bytes`` bytes of a stream; the last piece is cut, between two characters."""
    if max_bytes is None:
        yield from pieces
        return
    left = max_bytes
    for text, first in pieces:
        data = text.encode("utf-8", errors="replace")
        if len(data) > left:
            text = data[:left].decode("utf-8", errors="ignore")
            if text:
                yield text, first
            return
        left -= len(data)
        yield text, first


def split_by_document(pieces: Iterator[Piece], val_fraction: float) -> Iterator[tuple[str, Piece]]:
    """Whole documents to "train" or "val", by a hash of their (first piece of) text."""
    split = "train"
    for text, first in pieces:
        if first:
            digest = hashlib.blake2b(text.encode("utf-8", errors="replace"), digest_size=8).digest()
            split = "val" if int.from_bytes(digest, "little") < val_fraction * 2.0**64 else "train"
        yield split, (text, first)


def split_by_position(pieces: Iterator[Piece], train_bytes: int) -> Iterator[tuple[str, Piece]]:
    """The first ``train_bytes`` bytes, up to the end of their last line, to "train" and the rest to "val"."""
    done, in_val = 0, False
    for text, first in pieces:
        if in_val:
            yield "val", (text, first)
            continue
        data = text.encode("utf-8", errors="replace")
        if done + len(data) <= train_bytes:
            done += len(data)
            yield "train", (text, first)
            continue
        in_val = True
        head = data[: train_bytes - done].decode("utf-8", errors="ignore")
        cut = text.find("\n", len(head)) + 1 or len(head)
        if cut == len(text):  # the last line of all: better cut inside it than an empty validation split
            cut = len(head)
        if text[:cut]:
            yield "train", (text[:cut], first)
        if text[cut:]:
            yield "val", (text[cut:], True)


def group_files(files: list[Path]) -> dict[str, list[Path]]:
    """Files by split if every name says one (train, valid, ...; at least those two); else all in one group."""
    groups: dict[str, list[Path]] = {}
    for path in files:
        words = [_SPLIT_WORDS[w] for w in re.split(r"[^a-z]+", path.name.lower()) if w in _SPLIT_WORDS]
        if not words:
            return {"all": files}
        groups.setdefault(words[0], []).append(path)
    if not {"train", "val"} <= set(groups):
        return {"all": files}
    return {split: groups[split] for split in ("train", "val", "test") if split in groups}


def local_source(
    name: str, path: str, cache_dir: Path, *, separator: str | None, max_bytes: int | None, val_fraction: float,
    field: str = "data.path",
) -> LocalSource:  # fmt: skip
    """The file, folder or glob ``path``, which ``field`` of the configuration gives."""
    return LocalSource(
        name,
        group_files(find_files(path, field)),
        cache_dir,
        separator=separator,
        max_bytes=max_bytes,
        val_fraction=val_fraction,
        origin=f"{field}={path}",
    )


def stdlib_source(cache_dir: Path, *, max_bytes: int | None, val_fraction: float) -> LocalSource:
    """The Python standard library of this machine: each module a document, in the order of their names."""
    root = Path(sysconfig.get_path("stdlib"))
    files = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in _STDLIB_SKIP]  # site-packages can be huge
        # _sysconfigdata: the paths of this build
        files += [Path(folder, n) for n in names if n.endswith(".py") and not n.startswith("_sysconfigdata")]
    if not files:
        raise DataError(f"data.name=stdlib: no Python sources in {root}; use data=text data.path=<file or folder>")
    return LocalSource(
        "stdlib",
        {"all": sorted(files, key=lambda p: p.relative_to(root).as_posix())},
        cache_dir,
        separator=None,
        max_bytes=max_bytes,
        val_fraction=val_fraction,
        origin="data.max_bytes",
    )
