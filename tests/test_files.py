from __future__ import annotations

import errno
import json

import pytest

from bouton.config.messages import explain
from bouton.files import remove_partials, write_atomically, write_json, write_text


def test_a_failed_write_leaves_the_old_content(tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def half(file):
        file.write(b"ne")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, half)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_json_cannot_say_becomes_null(tmp_path):
    write_json(tmp_path / "a.json", {"loss": float("nan"), "peak": [float("inf"), 1]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"loss": None, "peak": [None, 1]}


def test_leftovers_of_killed_processes_are_removed(tmp_path):
    (tmp_path / ".file.txt.x.partial").write_text("half")
    remove_partials(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line():
    message = explain(OSError(errno.ENOSPC, "No space left on device", "runs/x/metrics.csv"))
    assert message is not None
    assert message.startswith("No space left on device (runs/x/metrics.csv)") and "\n" not in message
    assert explain(OSError(errno.EPIPE, "Broken pipe")) is None  # a bug keeps its traceback
