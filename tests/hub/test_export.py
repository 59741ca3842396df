"""The exported folder: whole or not there, and found by transformers' own classes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="the extra hub is not installed")

from bouton.errors import CheckpointError, DataError
from bouton.hub import export, from_pretrained, save_pretrained


def test_the_folder_has_what_transformers_reads(make_run: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    folder = save_pretrained(make_run("bpe"), tmp_path / "empty")
    assert {file.name for file in folder.iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "modeling_bouton.py", "tokenizer.json",
        "tokenizer_config.json",
    }  # fmt: skip
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "bouton" and config["model"]["num_layers"] == 2
    assert not list(tmp_path.glob(".*.partial"))


def test_a_folder_with_something_in_it_is_left_alone(make_run: Any, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(DataError, match="is not empty: choose a new folder"):
        save_pretrained(make_run("bytes"), tmp_path / "mine")
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"


def test_a_failure_leaves_nothing_behind(make_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run("bytes")

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "write_text", full)
    with pytest.raises(DataError, match="No space left on device"):
        save_pretrained(run, tmp_path / "exported")
    assert [entry.name for entry in tmp_path.iterdir()] == [run.name]


def test_what_is_no_export_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        from_pretrained(tmp_path / "nothing")
    assert "\n" not in str(caught.value) and "is no exported model" in str(caught.value)


@pytest.mark.slow
def test_a_process_that_does_not_know_bouton_loads_it(make_run: Any, tmp_path: Path) -> None:
    folder = save_pretrained(make_run("bpe", mechanism={"presyn": {}}), tmp_path / "exported")
    program = (
        "import sys, torch\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "out = model.generate(**tokenizer('a story', return_tensors='pt'), max_new_tokens=3, eos_token_id=None)\n"
        "print(type(model).__name__, out.shape[1] - len(tokenizer('a story').input_ids))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=False,
        env={**__import__("os").environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.stdout.split() == ["BoutonForCausalLM", "3"], done.stderr[-2000:]
