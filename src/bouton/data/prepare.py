"""From a source and a tokenizer to token files: in constant memory, resumable after a kill, published whole.

The files grow in ``<name>-<key>.partial``. Every few megabytes they are flushed to the disk and the journal
says how far they are valid; after a kill the next run cuts them back to that and goes on from there, to the same
bytes as without the interruption. At the end the folder is renamed to ``<name>-<key>``: what has that name is whole.
The key is a hash of the source's text, of how it is split, and of the tokenizer.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bouton.data.disk import disk_errors, locked
from bouton.data.progress import progress
from bouton.data.sources import Source
from bouton.data.store import DOCUMENTS, FORMAT, META, SPANS, TOKENS, VERSION, file_facts, token_dtype
from bouton.data.tokenizers import Tokenizer, load_tokenizer, train_bpe, train_words
from bouton.errors import DataError
from bouton.files import sync_folder, write_text

BATCH_CHARS = 1 << 20  # text that is tokenized at once
JOURNAL_CHARS = 1 << 24  # text between two entries of the journal
_JOURNAL = "journal.json"


@dataclass
class Counts:
    """How far one split is written."""

    tokens: int = 0
    documents: int = 0
    bytes: int = 0
    spans: int = 0  # of conversations alone


@dataclass
class State:
    """How far the whole is written: pieces of the source, and what they became."""

    pieces: int = 0
    splits: dict[str, Counts] = field(default_factory=dict)


def prepare_store(source: Any, tokenizer: Tokenizer, root: Path, writer: type[Writer] | None = None) -> Path:
    """The folder with one store per split ("train", "val", perhaps "test"), written now unless it is there.

    Processes that prepare the same at once wait for the first of them.

    Args:
        source: a :class:`bouton.data.sources.Source`, or what ``writer`` reads.
        writer: how it becomes tokens; None: as text.

    Raises:
        DataError: a split is empty, the disk is full, or the source cannot be read.
    """
    chosen = Writer if writer is None else writer
    parts = [FORMAT, VERSION, source.fingerprint, tokenizer.fingerprint, *filter(None, [chosen.form])]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    final = root / f"{source.name}-{key}"
    if final.is_dir():
        return final
    with disk_errors(root, "the token files"):
        root.mkdir(parents=True, exist_ok=True)
        with locked(root / f"{final.name}.lock"):
            if not final.is_dir():
                partial = root / f"{final.name}.partial"
                chosen(source, tokenizer, partial).run()
                partial.rename(final)
                sync_folder(root)
    return final


def prepare_trained(
    kind: str, source: Source, vocab_size: int, train_bytes: int, root: Path, specials: Sequence[str] = ()
) -> Tokenizer:
    """A tokenizer trained on the first ``train_bytes`` bytes of the training split, trained now unless it is there.

    Args:
        kind: bpe or words.
        specials: special tokens that BPE has besides the end of the text.
    """
    parts = [kind, 1, source.fingerprint, vocab_size, train_bytes, *specials]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    final = root / f"{kind}{vocab_size}-{source.name}-{key}"
    if final.is_dir():
        return load_tokenizer(final)
    with disk_errors(root, "the tokenizer"):
        root.mkdir(parents=True, exist_ok=True)
        with locked(root / f"{final.name}.lock"):
            if not final.is_dir():
                partial = root / f"{final.name}.partial"
                shutil.rmtree(partial, ignore_errors=True)
                what = "training BPE" if kind == "bpe" else "counting words"
                with progress(f"{what} on {source.name}", train_bytes) as advance:
                    text = _training_text(source, train_bytes, advance)
                    made = train_bpe(text, vocab_size, specials) if kind == "bpe" else train_words(text, vocab_size)
                    made.save(partial)
                partial.rename(final)
                sync_folder(root)
    return load_tokenizer(final)


def _training_text(source: Source, limit: int, advance: Any) -> Iterator[str]:
    seen = 0
    for split, (text, _) in source.pieces():
        if split == "train":
            yield text
            num_bytes = len(text.encode("utf-8", errors="replace"))
            seen += num_bytes
            advance(num_bytes)
            if seen >= limit:
                return


class Writer:
    """Writes one ``.partial`` folder to its end.

    Attributes:
        form: what distinguishes its files from those of text, for the key; empty: nothing.
        names: its files.
    """

    form = ""
    names: tuple[str, ...] = (TOKENS, DOCUMENTS)

    def __init__(self, source: Any, tokenizer: Tokenizer, folder: Path) -> None:
        self._source = source
        self._tokenizer = tokenizer
        self._folder = folder
        self._dtype = token_dtype(tokenizer.vocab_size)
        self._files: dict[str, tuple[BinaryIO, ...]] = {}
        self._state = State()

    def run(self) -> None:
        self._folder.mkdir(exist_ok=True)
        try:
            self._resume()
            with progress(f"tokenizing {self._source.name}", self._source.total_bytes) as advance:
                advance(sum(counts.bytes for counts in self._state.splits.values()))
                self._write_all(advance)
            self._sync()
        finally:
            for file in itertools.chain.from_iterable(self._files.values()):
                with contextlib.suppress(OSError):  # a full disk fails again; the journal knows what is valid
                    file.close()
        self._finish()

    def _resume(self) -> None:
        """Take up the state of the journal, with the files cut back to it; from scratch if they are shorter."""
        try:
            entry = json.loads((self._folder / _JOURNAL).read_text())
            self._state = State(entry["pieces"], {name: Counts(**counts) for name, counts in entry["splits"].items()})
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError, AttributeError):  # a damaged journal vouches for nothing
            self._restart()
            return
        for name in self._state.splits:
            self._open(name)
        written = [file.seek(0, os.SEEK_END) for pair in self._files.values() for file in pair]
        expected = [size for name in self._files for size in self._sizes(name)]
        if written != expected:
            self._restart()

    def _restart(self) -> None:
        self._files.clear()
        shutil.rmtree(self._folder)
        self._folder.mkdir()
        self._state = State()

    def _counts(self, split: str) -> Counts:
        return self._state.splits.setdefault(split, Counts())

    def _sizes(self, split: str) -> list[int]:
        counts = self._state.splits.get(split, Counts())
        sizes = {
            TOKENS: counts.tokens * self._dtype.itemsize,
            DOCUMENTS: counts.documents * 8,
            SPANS: counts.spans * 16,
        }
        return [sizes[name] for name in self.names]

    def _open(self, split: str) -> tuple[BinaryIO, ...]:
        """The files of a split, cut back to what the state says is valid."""
        if split not in self._files:
            folder = self._folder / split
            folder.mkdir(exist_ok=True)
            pair = []
            for name, size in zip(self.names, self._sizes(split), strict=True):
                path = folder / name
                path.touch()
                os.truncate(path, min(size, path.stat().st_size))
                pair.append(path.open("ab"))
            self._files[split] = tuple(pair)
        return self._files[split]

    def _write_all(self, advance: Any) -> None:
        batch: list[tuple[str, Any]] = []
        chars = since_journal = 0
        for item in itertools.islice(self._items(), self._state.pieces, None):
            batch.append(item)
            chars += self._length(item[1])
            if chars >= BATCH_CHARS:
                advance(self._write(batch))
                self._state.pieces += len(batch)
                since_journal += chars
                batch, chars = [], 0
                if since_journal >= JOURNAL_CHARS:
                    self._journal()
                    since_journal = 0
        if batch:
            advance(self._write(batch))
            self._state.pieces += len(batch)

    def _items(self) -> Iterator[tuple[str, Any]]:
        """(split, item) from the beginning."""
        items: Iterator[tuple[str, Any]] = self._source.pieces()
        return items

    def _length(self, item: Any) -> int:
        """Characters of an item."""
        return len(item[0])

    def _write(self, batch: Sequence[tuple[str, Any]]) -> int:
        """Append a batch of items; returns its bytes."""
        eot = np.array([self._tokenizer.eot_id])
        total = 0
        encoded = self._tokenizer.encode_batch([text for _, (text, _) in batch])
        for (split, (text, first)), tokens in zip(batch, encoded, strict=True):
            token_file, document_file = self._open(split)
            counts = self._counts(split)
            if first:
                document_file.write(np.array([counts.tokens], dtype="<i8").tobytes())
                tokens = np.concatenate([eot, tokens])
                counts.documents += 1
            token_file.write(tokens.astype(self._dtype).tobytes())
            counts.tokens += len(tokens)
            num_bytes = len(text.encode("utf-8", errors="replace"))
            counts.bytes += num_bytes
            total += num_bytes
        return total

    def _sync(self) -> None:
        for file in itertools.chain.from_iterable(self._files.values()):
            file.flush()
            os.fsync(file.fileno())

    def _journal(self) -> None:
        """Say how far the files are valid, after they are on the disk."""
        self._sync()
        write_text(self._folder / _JOURNAL, json.dumps(asdict(self._state)))

    def _finish(self) -> None:
        for split in ("train", "val"):
            if split not in self._state.splits:
                shutil.rmtree(self._folder)
                raise DataError(
                    f"data={self._source.name}: the split '{split}' got no document; "
                    "use more text, or change data.val_fraction or data.max_bytes"
                )
        for split, counts in self._state.splits.items():
            folder = self._folder / split
            meta = {
                "format": FORMAT,
                "version": VERSION,
                "dtype": self._dtype.str,
                "num_tokens": counts.tokens,
                "num_documents": counts.documents,
                "num_bytes": counts.bytes,
                "source": self._source.description | {"fingerprint": self._source.fingerprint},
                "tokenizer": {
                    "kind": self._tokenizer.kind,
                    "vocab_size": self._tokenizer.vocab_size,
                    "eot_id": self._tokenizer.eot_id,
                    "fingerprint": self._tokenizer.fingerprint,
                },
                "files": {name: file_facts(folder / name) for name in self.names},
            }
            write_text(folder / META, json.dumps(meta, indent=2) + "\n")
            sync_folder(folder)
        self._tokenizer.save(self._folder / "tokenizer")
        (self._folder / _JOURNAL).unlink(missing_ok=True)
