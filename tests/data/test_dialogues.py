from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bouton.data.dialogues import dialogue_texts
from bouton.data.documents import read_pieces
from bouton.data.sources import Reading, local_source
from bouton.errors import DataError

PAIR = "<|user|>\nhello\n<|/user|>\n<|assistant|>\nhi\n<|/assistant|>\n"


def test_messages_and_instructions() -> None:
    rows: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": " hi\n"}], "source": "x"},
        {"instruction": "hello", "input": "", "output": "hi"},
        {"instruction": "hello", "context": None, "response": "hi", "category": "y"},
        {"instruction": "hello", "input": "you", "output": "hi"},
        {"messages": []},
    ]
    assert list(dialogue_texts(iter(rows))) == [PAIR, PAIR, PAIR, PAIR.replace("hello", "hello\n\nyou")]


def tree(name: str, *messages: tuple[str, str | None, str, float | None], lang: str = "en") -> list[dict[str, Any]]:
    return [
        {
            "message_id": name + key, "parent_id": None if parent is None else name + parent, "rank": rank,
            "message_tree_id": name, "role": "prompter" if role == "user" else role, "text": f"{name}{key}",
            "lang": lang,
        }
        for key, parent, role, rank in messages
    ]  # fmt: skip


def test_of_a_tree_the_best_ranked_path_up_to_the_last_answer() -> None:
    rows = tree(
        "a",
        ("0", None, "user", None),
        ("1", "0", "assistant", 1.0),
        ("2", "0", "assistant", 0.0),
        ("3", "2", "user", None),
        ("4", "3", "assistant", None),
        ("5", "4", "user", None),
        ("6", "1", "user", 0.0),
    )
    rows += tree("b", ("0", None, "user", None), lang="de") + tree("c", ("0", None, "user", None))
    rows += tree("d", ("0", None, "user", None), ("1", "0", "assistant", None), lang="de")
    english = list(dialogue_texts(iter(rows), "en"))
    assert english == [
        "<|user|>\na0\n<|/user|>\n<|assistant|>\na2\n<|/assistant|>\n"
        "<|user|>\na3\n<|/user|>\n<|assistant|>\na4\n<|/assistant|>\n"
    ]
    assert len(list(dialogue_texts(iter(rows)))) == 2  # a question without an answer is no conversation


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "hello"}, "no conversation in a row with the columns text; known: messages"),
        ({"messages": [{"role": "narrator", "content": "x"}]}, "role 'narrator'; known: system, user"),
    ],
)
def test_other_rows_are_refused_in_one_line(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        list(dialogue_texts([row]))
    assert "\n" not in str(caught.value)


def test_files_of_conversations(tmp_path: Path) -> None:
    rows = [{"instruction": "hello", "output": "hi", "number": n} for n in range(3)]
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert list(read_pieces([path], None, texts=dialogue_texts)) == [(PAIR, True)] * 3
    import pyarrow as pa  # type: ignore[import-untyped]
    from pyarrow import parquet

    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "chat.parquet")
    assert list(read_pieces([tmp_path / "chat.parquet"], None, texts=dialogue_texts)) == [(PAIR, True)] * 3
    path.write_text("3\n")
    with pytest.raises(DataError, match=r"chat\.jsonl, line 1: not a JSON object"):
        list(read_pieces([path], None, texts=dialogue_texts))


def test_how_it_is_read_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "chat.jsonl").write_text(
        "".join(json.dumps({"text": "a", "instruction": f"{n}", "output": "c"}) + "\n" for n in range(9))
    )
    options: dict[str, Any] = {"separator": None, "max_bytes": None, "val_fraction": 0.5}

    def make(reading: Reading | None = None) -> Any:
        return local_source("s", str(tmp_path / "chat.jsonl"), tmp_path / "c", reading=reading, **options)

    plain, chat = make(), make(Reading("chat", dialogue_texts))
    assert plain.fingerprint != chat.fingerprint
    assert next(chat.pieces())[1][0].startswith("<|user|>") and next(plain.pieces())[1][0] == "a"
