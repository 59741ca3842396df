from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from bouton.data import documents
from bouton.data.documents import find_files, read_pieces
from bouton.errors import DataError


def whole(files: list[Path], separator: str | None) -> list[str]:
    texts: list[str] = []
    for text, first in read_pieces(files, separator):
        if first:
            texts.append(text)
        else:
            texts[-1] += text
    return texts


@pytest.mark.parametrize("block", [3, 7, 1000])
def test_separator_is_found_wherever_blocks_end(block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\nmore\n<|e|>\n\n<|e|>\ntwo\n<|e|>\nthree is longer\n")
    monkeypatch.setattr(documents, "_BLOCK_CHARS", block)
    monkeypatch.setattr(documents, "PIECE_CHARS", 6)
    assert whole([path], "<|e|>") == ["one\nmore", "two", "three is longer"]


def test_long_documents_come_in_pieces_cut_after_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "PIECE_CHARS", 100)
    text = "".join(f"line {n}\n" for n in range(500))
    path = tmp_path / "long.txt"
    path.write_text(text)
    pieces = list(read_pieces([path], None))
    assert "".join(piece for piece, _ in pieces) == text
    assert [first for _, first in pieces] == [True] + [False] * (len(pieces) - 1)
    assert all(len(piece) <= 200 and piece.endswith("\n") for piece, _ in pieces)


def test_formats_give_the_same_documents(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow.parquet import write_table

    texts = ["first é", "second\nline"]
    (tmp_path / "a.txt").write_text("<|e|>".join(texts))
    with gzip.open(tmp_path / "a.txt.gz", "wt", encoding="utf-8") as file:
        file.write("<|e|>".join(texts))
    lines = "".join(json.dumps({"text": t}) + "\n" for t in texts)
    (tmp_path / "a.jsonl").write_text(lines)
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write(lines)
    write_table(pyarrow.table({"text": texts}), tmp_path / "a.parquet")
    for name in ("a.txt", "a.txt.gz", "a.jsonl", "a.jsonl.gz", "a.parquet"):
        assert whole([tmp_path / name], "<|e|>") == texts, name


def test_folder_and_glob(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("b.txt", "a.md", "sub/c.txt", ".hidden"):
        (tmp_path / name).write_text("x")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\0\0")
    assert [p.name for p in find_files(str(tmp_path))] == ["a.md", "b.txt", "c.txt"]
    assert [p.name for p in find_files(str(tmp_path / "**" / "*.txt"))] == ["b.txt", "c.txt"]


def test_errors_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "zeros.bin").write_bytes(b"\0\1")
    (tmp_path / "empty").mkdir()
    for path, message in [("nowhere", "no such file"), ("zeros.bin", "not a text file"), ("empty", "no text files")]:
        with pytest.raises(DataError, match=message):
            find_files(str(tmp_path / path))
    bad = {"a.jsonl": b'{"text": "x"}\n{"other": 1}\n', "a.txt.gz": b"not gzip", "a.parquet": b"no"}
    for name, data in bad.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=name.replace(".", r"\.")) as caught:
            list(read_pieces([tmp_path / name], None))
        assert "\n" not in str(caught.value)
    gz = tmp_path / "cut.txt.gz"
    gz.write_bytes(gzip.compress(b"x" * 10000)[:-9])
    with pytest.raises(DataError, match="cut"):
        list(read_pieces([gz], None))
