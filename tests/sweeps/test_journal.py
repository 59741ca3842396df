"""Records are whole or absent, whoever writes and whatever dies."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from bouton.errors import ConfigError
from bouton.sweeps.journal import Journal, exclusive

WRITER = """
import sys
from pathlib import Path
from bouton.sweeps.journal import Journal
journal = Journal(Path(sys.argv[1]))
for i in range(60):
    journal.append("trial", id=f"{sys.argv[2]}-{i}", text="x" * 3000, value=i)
"""


def test_a_torn_line_is_cut_off_and_nothing_else_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "progress.jsonl"
    journal = Journal(path)
    journal.refresh()
    journal.append("header", words=["a"])
    journal.append("trial", id="t0", value=1.5, bad=math.nan, nested=[math.inf, {"x": -math.inf}])
    with path.open("a") as file:
        file.write('{"kind": "trial", "id": "t1", "val')  # the machine died here
    again = Journal(path)
    again.refresh()
    assert [r["kind"] for r in again.records] == ["header", "trial"]
    assert again.trials["t0"]["bad"] is None and again.trials["t0"]["nested"] == [None, {"x": None}]
    again.append("trial", id="t1", value=2.0)
    journal.refresh()
    assert journal.trials["t1"]["value"] == 2.0
    assert all(json.loads(line) for line in path.read_text().splitlines())
    assert len(path.read_text().splitlines()) == 3


def test_the_first_record_of_a_trial_counts(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "progress.jsonl")
    journal.append("trial", id="t", value=1.0)
    journal.append("trial", id="t", value=2.0)
    assert journal.trials["t"]["value"] == 1.0


def test_processes_write_side_by_side(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), name]) for name in "ab"]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0]
    journal = Journal(path)
    journal.refresh()
    assert len(journal.records) == len(path.read_text().splitlines()) == len(journal.trials) == 120


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with exclusive(lock, "busy"), pytest.raises(ConfigError, match="busy"), exclusive(lock, "busy"):
        pass
    with exclusive(tmp_path / "lock", "busy"):
        pass
