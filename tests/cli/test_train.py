"""What the training command says before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from bouton.cli.train import main


def test_a_run_folder_that_cannot_be_made_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    assert main([f"run_dir={tmp_path}/file/run", "model=tiny"]) == 1
    assert capfd.readouterr().err == (
        f"error: run_dir cannot be made ({tmp_path}/file/run): Not a directory; choose another folder\n"
    )
