"""Token files: what a prepared corpus looks like on disk, and how it is opened.

One folder per split::

    tokens.bin      the token ids of all documents end to end, little-endian uint16 (uint32 for over 65,536 ids)
    documents.bin   int64, where each document begins in tokens.bin
    spans.bin       int64 (conversations only), where what is learned begins and ends (exclusive), in turn
    meta.json       format version, dtype, counts, source and tokenizer with fingerprints, size and SHA-256 of the files

A store is opened by memory map, so a corpus of any size needs no memory of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bouton.errors import DataError
from bouton.files import write_text

FORMAT = "bouton-tokens"
VERSION = 1
TOKENS, DOCUMENTS, SPANS, META = "tokens.bin", "documents.bin", "spans.bin", "meta.json"
_VERIFIED = ".verified.json"


@dataclass(frozen=True)
class TokenStore:
    """One split of a prepared corpus, read-only.

    Attributes:
        tokens: (num_tokens,) ids, memory-mapped.
        documents: (num_documents,) int64, positions in ``tokens`` where documents begin (each with ``eot_id``).
        num_bytes: UTF-8 bytes of the text.
        meta: the whole of meta.json.
        spans: (2 S,) int64, the targets with a loss are [spans[0], spans[1]), [spans[2], spans[3]), ...; None: all.
    """

    folder: Path
    tokens: NDArray[Any]
    documents: NDArray[np.int64]
    num_bytes: int
    meta: dict[str, Any]
    spans: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def document(self, index: int) -> NDArray[np.int64]:
        """The tokens of one document, its leading ``eot_id`` included."""
        end = self.documents[index + 1] if index + 1 < len(self.documents) else len(self.tokens)
        return np.asarray(self.tokens[self.documents[index] : end], dtype=np.int64)


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The smallest type that holds all ids."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def open_store(folder: str | Path) -> TokenStore:
    """Open a split after checking it: sizes always, checksums at the first opening and whenever a file has changed.

    Raises:
        DataError: the store is missing, of another version, cut short, or its bytes are not those that were written.
    """
    folder = Path(folder)
    try:
        meta = json.loads((folder / META).read_text())
        version, files = meta["version"], meta["files"]
        dtype = np.dtype(meta["dtype"])
        counts = int(meta["num_tokens"]), int(meta["num_documents"]), int(meta["num_bytes"])
    except FileNotFoundError:
        raise DataError(f"no token files at {folder}: {META} is missing") from None
    except (ValueError, KeyError, TypeError):
        raise _corrupt(folder, f"{META} cannot be read") from None
    if meta.get("format") != FORMAT or version != VERSION:
        raise DataError(f"the token files at {folder} have the format version {version}, not {VERSION}: delete them")
    if files[TOKENS]["size"] != counts[0] * dtype.itemsize or files[DOCUMENTS]["size"] != counts[1] * 8:
        raise _corrupt(folder, f"the counts in {META} contradict the file sizes")
    _verify(folder, files)
    tokens = np.memmap(folder / TOKENS, dtype=dtype, mode="r")
    documents = np.memmap(folder / DOCUMENTS, dtype=np.dtype("<i8"), mode="r")
    spans = np.memmap(folder / SPANS, dtype=np.dtype("<i8"), mode="r") if SPANS in files else None
    return TokenStore(folder, tokens, documents, counts[2], meta, spans)


def file_facts(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file, read in constant memory."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"size": path.stat().st_size, "sha256": digest}


def _verify(folder: Path, files: dict[str, Any]) -> None:
    state = {}
    for name, facts in files.items():
        try:
            stat = (folder / name).stat()
        except FileNotFoundError:
            raise _corrupt(folder, f"{name} is missing") from None
        if stat.st_size != facts["size"]:
            raise _corrupt(folder, f"{name} has {stat.st_size} bytes, not {facts['size']}")
        state[name] = [stat.st_size, stat.st_mtime_ns, facts["sha256"]]
    marker = folder / _VERIFIED
    try:
        if json.loads(marker.read_text()) == state:
            return
    except (OSError, ValueError):
        pass
    for name, facts in files.items():
        if file_facts(folder / name)["sha256"] != facts["sha256"]:
            raise _corrupt(folder, f"the checksum of {name} differs")
    with contextlib.suppress(OSError):  # a read-only cache is checked every time
        write_text(marker, json.dumps(state))


def _corrupt(folder: Path, reason: str) -> DataError:
    return DataError(f"the token files at {folder} are corrupt ({reason}): delete {folder.parent} and run again")
