from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from bouton.data.hub import HubDataset
from bouton.data.sources import (
    HubSource,
    LocalSource,
    capped,
    group_files,
    local_source,
    split_by_document,
    split_by_position,
    stdlib_source,
)
from bouton.errors import DataError

from .conftest import story


def source(path: Path, tmp_path: Path, **options: object) -> LocalSource:
    defaults: dict[str, object] = {"separator": "<|endoftext|>", "max_bytes": None, "val_fraction": 0.2}
    return local_source("text", str(path), tmp_path / "cache", **(defaults | options))  # type: ignore[arg-type]


def test_split_by_document_is_stable_and_keeps_repeats_together(corpus: Path, tmp_path: Path) -> None:
    documents = [(story(n), True) for n in range(300)]
    split = {text: name for name, (text, _) in split_by_document(iter(documents), 0.2)}
    again = {text: name for name, (text, _) in split_by_document(iter([*documents[::-1], *documents]), 0.2)}
    assert split == again
    assert 30 < sum(name == "val" for name in split.values()) < 90
    assert source(corpus, tmp_path).description["split"] == "document hash"


def test_all_pieces_of_a_document_stay_in_its_split() -> None:
    pieces = [(f"{n} piece {k}", k == 0) for n in range(40) for k in range(3)]
    names = [name for name, _ in split_by_document(iter(pieces), 0.5)]
    assert all(len(set(names[i : i + 3])) == 1 for i in range(0, len(names), 3))
    assert set(names) == {"train", "val"}


@pytest.mark.parametrize("size", [5, 1000])
def test_split_by_position_holds_out_the_end(size: int) -> None:
    text = "".join(f"zeile {n} ü\n" for n in range(100))
    pieces = [(text[i : i + size], i == 0) for i in range(0, len(text), size)]
    out = list(split_by_position(iter(pieces), int(len(text.encode()) * 0.9)))
    train = "".join(piece for name, (piece, _) in out if name == "train")
    val = "".join(piece for name, (piece, _) in out if name == "val")
    assert train + val == text
    assert 0.88 < len(train) / len(text) < 0.93
    assert next(first for name, (_, first) in out if name == "val")
    if size > len("zeile 99 ü\n"):
        assert train.endswith("\n")


def test_one_line_is_still_split() -> None:
    out = list(split_by_position(iter([("x" * 100, True)]), 90))
    assert [(name, len(piece)) for name, (piece, _) in out] == [("train", 90), ("val", 10)]


def test_own_files_are_the_splits(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("x-train.txt", "x-valid.txt", "x.test.txt"):
        (folder / name).write_text(f"text of {name}")
    found = source(folder, tmp_path)
    assert [(s, t) for s, (t, _) in found.pieces()] == [
        ("train", "text of x-train.txt"), ("val", "text of x-valid.txt"), ("test", "text of x.test.txt")]  # fmt: skip
    # one file that names no split, or no validation file: nothing is left out, nothing guessed
    files = sorted(folder.iterdir())
    assert group_files([*files, folder / "notes.txt"]).keys() == {"all"}
    assert group_files([files[0], files[0].with_name("training.txt")]).keys() == {"all"}
    (folder / "x-valid.txt").write_text("")
    with pytest.raises(DataError, match="holds no text for the split 'val'"):
        source(folder, tmp_path)


def test_cap_cuts_between_characters() -> None:
    pieces = list(capped(iter([("aé", True), ("éé", False), ("never", True)]), 6))
    assert pieces == [("aé", True), ("é", False)]


def test_fingerprint_follows_content_and_split(corpus: Path, tmp_path: Path) -> None:
    before = source(corpus, tmp_path).fingerprint
    assert source(corpus, tmp_path).fingerprint == before  # from the remembered survey
    copy = corpus.with_name("copy.txt")
    copy.write_bytes(corpus.read_bytes())
    assert source(copy, tmp_path).fingerprint == before  # the path does not matter
    assert source(corpus, tmp_path, val_fraction=0.3).fingerprint != before
    assert source(corpus, tmp_path, max_bytes=500).fingerprint != before
    corpus.write_text(corpus.read_text() + "!")
    assert source(corpus, tmp_path).fingerprint != before


def test_empty_corpus(tmp_path: Path) -> None:
    path = tmp_path / "empty.txt"
    path.write_text(" \n")
    with pytest.raises(DataError, match=r"data\.path=.*empty\.txt holds no text"):
        source(path, tmp_path)


def test_stdlib_is_there_and_leaves_out_packages(tmp_path: Path) -> None:
    found = stdlib_source(tmp_path, max_bytes=200_000, val_fraction=0.3)
    text = "".join(piece for _, (piece, _) in found.pieces())
    assert len(text.encode()) == found.total_bytes
    assert 199_000 < len(text.encode()) <= 200_000
    assert "def " in text
    assert found.fingerprint == stdlib_source(tmp_path, max_bytes=200_000, val_fraction=0.3).fingerprint


def hub(**fields: object) -> HubDataset:
    defaults: dict[str, object] = {"repository": "a/b", "subset": None, "revision": None, "files": None,
                                   "text_field": "text", "splits": {"train": "train"}}  # fmt: skip
    return HubDataset(**(defaults | fields))  # type: ignore[arg-type]


def test_hub_streams_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[tuple[object, ...]] = []

    def load_dataset(repository: str, *, split: str, **options: object) -> list[dict[str, str]]:
        asked.append((repository, split, options["streaming"]))
        return [{"text": f"{split} {n}"} for n in range(40)]

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", lambda *a, **k: None)
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    own = HubSource("x", hub(splits={"train": "train", "val": "validation"}), max_bytes=None, val_fraction=0.5)
    out = list(own.pieces())
    assert [name for name, _ in out] == ["train"] * 40 + ["val"] * 40
    assert asked == [("a/b", "train", True), ("a/b", "validation", True)]
    one = HubSource("x", hub(), max_bytes=100, val_fraction=0.5)
    assert {name for name, _ in one.pieces()} == {"train", "val"}
    assert sum(len(text) for _, (text, _) in one.pieces()) == 100
    assert one.fingerprint != own.fingerprint
    elsewhere = HubSource("x", hub(node="data.sources.x"), max_bytes=100, val_fraction=0.5)
    assert elsewhere.fingerprint == one.fingerprint  # the same text, wherever it is named
    with pytest.raises(DataError, match="text_field=body"):
        list(HubSource("x", hub(text_field="body"), max_bytes=None, val_fraction=0.5).pieces())


def test_hub_without_network_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("name not known\nsecond line")

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", refuse)
    with pytest.raises(DataError, match=r"a/b cannot be fetched .*data\.path=<file or folder>") as caught:
        list(HubSource("x", hub(), max_bytes=None, val_fraction=0.5).pieces())
    assert "\n" not in str(caught.value)
