"""Labelled texts from files: JSON lines with spans of characters, or one token and its BIO tag per line (CoNLL)."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bouton.data.pii.bio import Document, Span
from bouton.errors import DataError
from bouton.files import reading_text

_SPLITS = {"train": r"train", "val": r"dev|valid|\bval\b|_val", "test": r"test"}


def read_splits(pattern: str, types: Mapping[str, str], held_out: float) -> dict[str, list[Document]]:
    """The documents of a file, or of all files of a folder or glob, by split.

    A file whose name says train, dev, valid or test is that split. Others are divided by what their documents say of
    their template (``template_id``), else by their text: ``held_out`` each for validation and test.

    Args:
        types: name in the files -> name of the type; entities of other names are none.

    Raises:
        DataError: there is no such file, one cannot be read, or a split is empty.
    """
    path = Path(pattern).expanduser()
    found = sorted(path.iterdir()) if path.is_dir() else sorted(path.parent.glob(path.name))
    files = [file for file in found if file.suffix in (".jsonl", ".tsv", ".conll", ".txt")]
    if not files:
        raise DataError(f"data.path={pattern}: there is no .jsonl, .tsv, .conll or .txt file")
    splits: dict[str, list[Document]] = {"train": [], "val": [], "test": []}
    for file in files:
        named = next((split for split, mark in _SPLITS.items() if re.search(mark, file.stem.lower())), None)
        for document in read_documents(file, types):
            splits[named or _drawn(document.group or document.text, held_out)].append(document)
    if empty := [split for split, documents in splits.items() if not documents]:
        raise DataError(
            f"data.path={pattern}: no text for the split {empty[0]}; names of files may say train, dev, test"
        )
    return splits


def read_documents(path: Path, types: Mapping[str, str]) -> list[Document]:
    """The documents of one file.

    Raises:
        DataError: it cannot be read, or a line of it, whose number is said.
    """
    with reading_text(str(path)):
        lines = path.read_text(encoding="utf-8").splitlines()
    read = _json_lines if path.suffix == ".jsonl" else _tagged
    return list(read(path, lines, types))


def _json_lines(path: Path, lines: list[str], types: Mapping[str, str]) -> Iterator[Document]:
    """``{"text": ..., "spans": [[begin, end, type], ...], "template_id": ...}`` per line; end is exclusive."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            text = str(entry["text"])
            spans = sorted((int(begin), int(end), str(name)) for begin, end, name in entry["spans"])
        except (ValueError, KeyError, TypeError):
            raise DataError(f'{path}, line {number}: not {{"text": ..., "spans": [[begin, end, type], ...]}}') from None
        last = 0
        for begin, end, _ in spans:
            if not last <= begin < end <= len(text):
                raise DataError(
                    f"{path}, line {number}: the span [{begin}, {end}) is empty, outside or overlaps another"
                )
            last = end
        kept = tuple(Span(begin, end, types[name]) for begin, end, name in spans if name in types)
        group = entry.get("template_id")
        yield Document(text, kept, "" if group is None else f"template {group}")


def _tagged(path: Path, lines: list[str], types: Mapping[str, str]) -> Iterator[Document]:
    """A token, a tab and a BIO tag per line; an empty line ends a text, whose tokens are joined by spaces."""
    words: list[str] = []
    spans: list[tuple[int, int, str]] = []
    at, before = 0, "O"
    for number, line in enumerate([*lines, ""], 1):
        if not line.strip():
            if words:
                kept = tuple(Span(b, e, types[name]) for b, e, name in spans if name in types)
                yield Document(" ".join(words), kept)
            words, spans, at, before = [], [], 0, "O"
            continue
        word, tab, tag = line.partition("\t")
        tag = tag.strip()
        if not tab or not (tag == "O" or tag[:2] in ("B-", "I-")):
            raise DataError(f"{path}, line {number}: not a token, a tab and a tag O, B-type or I-type")
        end = at + len(word)
        if tag.startswith("I-") and before[2:] == tag[2:]:
            spans[-1] = (spans[-1][0], end, tag[2:])
        elif tag != "O":
            spans.append((at, end, tag[2:]))
        words.append(word)
        at, before = end + 1, tag


def _drawn(key: Any, held_out: float) -> str:
    """The split of a document by a hash of what must stay together."""
    share = int.from_bytes(hashlib.sha256(str(key).encode()).digest()[:8], "big") / 2.0**64
    return "val" if share < held_out else "test" if share < 2 * held_out else "train"
