"""A set as large as OpenWebText is prepared in constant memory, and to the same bytes however often it is killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bouton.data import open_store, train_bpe

from .conftest import WORDS
from .test_prepare import contents

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
SCRIPT = Path(__file__).with_name("preparing.py")
FORMS = ("jsonl", "parquet", "hub")


def pages(count: int, words: int, seed: int = 0) -> Iterator[str]:
    """Web pages of very different lengths, no two alike."""
    draw = random.Random(seed)
    for number in range(count):
        length = min(words * 20, int(draw.expovariate(1 / words)) + 3)
        text = " ".join(draw.choices(WORDS, k=length))
        yield f"Page {number}\n\n{text}.\n"


def write(form: str, folder: Path, texts: Iterator[str], shards: int) -> str:
    """Shards as those that the hub has; what names them all."""
    import pyarrow as pa
    from pyarrow import parquet

    folder.mkdir()
    parts: list[list[str]] = [[] for _ in range(shards)]
    for number, text in enumerate(texts):
        parts[number % shards].append(text)
    for number, part in enumerate(parts):
        if form == "jsonl":
            lines = "".join(json.dumps({"text": text}) + "\n" for text in part)
            (folder / f"{number:04d}.jsonl").write_text(lines)
        else:
            parquet.write_table(pa.table({"text": part}), folder / f"{number:04d}.parquet", row_group_size=64)
    return str(folder / "*.parquet") if form == "hub" else str(folder)


def told(task: str, **given: Any) -> list[dict[str, Any]]:
    command = [sys.executable, str(SCRIPT), task, json.dumps(given)]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}  # the files are here: nothing is to be asked for
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=offline)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_killed_again_and_again_it_ends_with_the_same_bytes(form: str, tmp_path: Path) -> None:
    files = write(form, tmp_path / "shards", pages(400, 30), shards=3)
    train_bpe(pages(100, 30, seed=1), 400).save(tmp_path / "tokenizer")
    moments = [("reading", 2), ("journal", 1), ("reading", 130), ("writing", 4), ("writing", 1), ("journal", 2)]
    moments += [("reading", 399), ("finishing", 4)]
    whole, *killed, last = told(
        "kills", form=form, files=files, caches=[str(tmp_path / name) for name in ("whole", "killed")],
        tokenizer=str(tmp_path / "tokenizer"), kills=moments,
    )  # fmt: skip
    assert [process["exit"] for process in killed] == [-signal.SIGKILL] * len(moments)
    assert whole["exit"] == last["exit"] == 0
    assert Path(whole["folder"]).name == Path(last["folder"]).name
    expected = contents(Path(whole["folder"]))
    assert contents(Path(last["folder"])) == expected
    assert {"train/tokens.bin", "train/documents.bin", "val/tokens.bin", "val/meta.json"} <= set(expected)
    documents = [len(open_store(Path(last["folder"]) / split).documents) for split in ("train", "val")]
    assert sum(documents) == 400 and documents[1] > 5
    # it goes on from the journal: what was written before is never lost, and grows where a journal entry came to be
    progress = [process["journaled"] or 0 for process in killed]
    assert progress == sorted(progress) and progress[0] == 0 < progress[2] < progress[5] < progress[6]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is in kilobytes on Linux")
@pytest.mark.parametrize("form", ["jsonl", "hub"])
def test_a_set_four_times_as_large_needs_no_more_memory(form: str, tmp_path: Path) -> None:
    """In shards of one size, as those of the hub. Its text alone, kept as bytes, would take 25 MB more."""
    files = [write(form, tmp_path / f"set{size}", pages(3500 * size, 500), shards=2 * size) for size in (1, 4)]
    one, four = told("memory", form=form, files=files, caches=[str(tmp_path / "cache")])
    assert one["exit"] == four["exit"] == 0
    sizes = [open_store(Path(found["folder"]) / "train").num_bytes for found in (one, four)]
    assert sizes[0] > 6e6 and sizes[1] > sizes[0] + 25e6
    assert four["grown"] < one["grown"] + 20_000, (one, four)  # kB; Arrow's pool breathes
