from __future__ import annotations

import json
from pathlib import Path

import pytest

from bouton.data.pii.bio import Document, Span
from bouton.data.pii.files import read_documents, read_splits
from bouton.errors import DataError

TYPES = {"PERSON": "PERSON", "GPE": "LOCATION"}


def write(path: Path, *entries: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def test_json_lines(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl", {"text": "Ada in Rome at 3", "spans": [[7, 11, "GPE"], [0, 3, "PERSON"], [15, 16, "AGE"]]}
    )
    assert read_documents(path, TYPES) == [
        Document("Ada in Rome at 3", (Span(0, 3, "PERSON"), Span(7, 11, "LOCATION")))
    ]


def test_tagged_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("Ada\tB-PERSON\nKing\tI-PERSON\nBo\tB-PERSON\nin\tO\nUK\tI-GPE\n\n\nX\tB-AGE\nY\tI-PERSON\n")
    assert read_documents(path, TYPES) == [
        Document("Ada King Bo in UK", (Span(0, 8, "PERSON"), Span(9, 11, "PERSON"), Span(15, 17, "LOCATION"))),
        Document("X Y", (Span(2, 3, "PERSON"),)),
    ]


def test_names_of_files_say_the_split(tmp_path: Path) -> None:
    for name in ("x_train", "x_dev", "x_test"):
        (tmp_path / f"{name}.tsv").write_text(f"{name}\tO\n")
    splits = read_splits(str(tmp_path / "x_*.tsv"), TYPES, 0.1)
    assert {split: [d.text for d in found] for split, found in splits.items()} == {
        "train": ["x_train"], "val": ["x_dev"], "test": ["x_test"],
    }  # fmt: skip
    assert read_splits(str(tmp_path), TYPES, 0.1) == splits


def test_texts_of_one_template_stay_together(tmp_path: Path) -> None:
    entries = [{"text": f"text {n}", "spans": [], "template_id": n % 40} for n in range(200)]
    splits = read_splits(str(write(tmp_path / "all.jsonl", *entries)), TYPES, 0.2)
    groups = [{d.group for d in splits[split]} for split in ("train", "val", "test")]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 40
    assert sum(map(len, splits.values())) == 200


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "x"}', "line 1: not {"),
        ("a.jsonl", '{"text": "x", "spans": []}\n{', "line 2: not {"),
        ("a.jsonl", '{"text": "abc", "spans": [[1, 4, "GPE"]]}', r"line 1: the span \[1, 4\)"),
        ("a.jsonl", '{"text": "abc", "spans": [[0, 2, "GPE"], [1, 3, "GPE"]]}', r"the span \[1, 3\)"),
        ("a.tsv", "x\tO\ny O", "line 2: not a token"),
        ("a.tsv", "x\tQ-GPE", "line 1: not a token"),
        ("a.md", "x", "there is no .jsonl"),
        ("a_train.tsv", "x\tO", "no text for the split val"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        read_splits(str(tmp_path), TYPES, 0.1)
    assert "\n" not in str(caught.value)
