"""Local files as a stream of documents, in constant memory.

A document comes as one or more pieces of bounded length, cut after a line end, so that a file of many gigabytes
without a separator needs no more memory than a small one. Where a piece is cut depends on the document alone.
"""

from __future__ import annotations

import glob
import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from bouton.errors import DataError

PIECE_CHARS = 1 << 18
_BLOCK_CHARS = 1 << 18

Piece = tuple[str, bool]  # the text, and whether a document begins with it


def find_files(path: str, field: str = "data.path") -> list[Path]:
    """The files that ``field`` names (a file, a folder with all its sub-folders, or a glob), in sorted order.

    In a folder or a glob, hidden files and files that are not text are left out.
    """
    whole = Path(path).expanduser()
    if whole.is_file():
        if not _is_readable_text(whole):
            raise DataError(f"{field}={path} is not a text file (it holds zero bytes)")
        return [whole]
    if whole.is_dir():
        found = [p for p in whole.rglob("*") if not any(part.startswith(".") for part in p.relative_to(whole).parts)]
    else:
        found = [Path(p) for p in glob.glob(str(whole), recursive=True)]  # noqa: PTH207 (may be absolute)
        if not found:
            raise DataError(f"{field}={path}: no such file, folder or glob")
    files = sorted(p for p in found if p.is_file() and _is_readable_text(p))
    if not files:
        raise DataError(f"{field}={path} holds no text files")
    return files


def _is_readable_text(path: Path) -> bool:
    if path.suffix in (".gz", ".parquet"):
        return True
    with path.open("rb") as file:
        return b"\0" not in file.read(4096)


def read_pieces(files: Sequence[Path], separator: str | None, text_field: str = "text") -> Iterator[Piece]:
    """The documents of ``files``: separated by ``separator`` and by file ends, or one per row of .jsonl and .parquet.

    Line ends next to a separator do not belong to a document. Empty documents are left out. ``.gz`` is unpacked on
    the way. Bytes that are not UTF-8 become replacement signs.
    """
    for path in files:
        try:
            yield from _read_file(path, separator, text_field)
        except (OSError, EOFError) as error:
            if isinstance(error, OSError) and error.errno is not None and not isinstance(error, FileNotFoundError):
                raise DataError(f"{path} cannot be read: {error.strerror}") from error
            raise DataError(f"{path} cannot be read: {error}") from error


def _read_file(path: Path, separator: str | None, text_field: str) -> Iterator[Piece]:
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        yield from pieces_of(_parquet(path, text_field))
        return
    with open_text(path) as file:
        if name.endswith((".jsonl", ".ndjson")):
            yield from pieces_of(_json_lines(path, file, text_field))
        else:
            yield from _separated(file, separator)


def open_text(path: Path) -> TextIO:
    """A text file, unpacked on the way if it is ``.gz``."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", errors="replace", newline="")
    return path.open("r", encoding="utf-8", errors="replace", newline="")


def _separated(file: TextIO, separator: str | None) -> Iterator[Piece]:
    rest, first = "", True
    while block := file.read(_BLOCK_CHARS):
        rest += block
        if separator is not None and separator in rest:
            *complete, rest = rest.split(separator)
            for text in complete:
                yield from _finish(text, first, strip=True)
                first = True
        # what is kept is longer than any separator, so one that straddles two blocks is still found
        if first and separator is not None:
            rest = rest.lstrip("\r\n")
        while len(rest) > 2 * PIECE_CHARS:
            piece, rest = _cut(rest)
            yield piece, first
            first = False
    yield from _finish(rest, first, strip=separator is not None)


def _finish(text: str, first: bool, *, strip: bool) -> Iterator[Piece]:
    """The last pieces of a document; ``first`` if none of it came before."""
    if strip:
        text = text.strip("\r\n") if first else text.rstrip("\r\n")
    if first and not text.strip():
        return
    while len(text) > 2 * PIECE_CHARS:
        piece, text = _cut(text)
        yield piece, first
        first = False
    if text:
        yield text, first


def _cut(text: str) -> tuple[str, str]:
    end = text.rfind("\n", 0, PIECE_CHARS) + 1 or PIECE_CHARS
    return text[:end], text[end:]


def pieces_of(texts: Iterator[str]) -> Iterator[Piece]:
    """Documents that are already separate, as pieces."""
    for text in texts:
        yield from _finish(text, True, strip=False)


def _json_lines(path: Path, file: TextIO, text_field: str) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)[text_field]
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{path}, line {number}: not a JSON object with the field '{text_field}'") from None
        yield str(text)


def _parquet(path: Path, text_field: str) -> Iterator[str]:
    from pyarrow import ArrowInvalid  # type: ignore[import-untyped]
    from pyarrow.parquet import ParquetFile  # type: ignore[import-untyped]

    try:
        table = ParquetFile(path)
        if text_field not in table.schema_arrow.names:
            raise DataError(f"{path} has no column '{text_field}': it has {', '.join(table.schema_arrow.names)}")
        for batch in table.iter_batches(batch_size=256, columns=[text_field]):
            yield from (str(text) for text in batch.column(0).to_pylist() if text is not None)
    except ArrowInvalid as error:
        raise DataError(f"{path} is not a parquet file: {str(error).splitlines()[0]}") from error
