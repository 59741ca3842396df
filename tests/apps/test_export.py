from pathlib import Path

import pytest
import torch
import yaml

from bouton.cli.main import main
from bouton.data.tokenizers import ByteTokenizer
from bouton.hub import optional
from bouton.models.build import build


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = {
        "seed": 0,
        "model": {"vocab_size": 257, "num_layers": 1, "hidden_size": 8, "num_heads": 2},
        "mechanism": {},
    }
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    tensors = {f"body.{name}": tensor for name, tensor in build(config).state_dict().items()}
    torch.save({"state_dict": tensors, "bouton": {"format": 1}}, run / "checkpoints" / "best.ckpt")
    ByteTokenizer().save(run / "tokenizer")
    return run


def test_writes_a_folder_and_says_so(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers", reason="the extra hub is not installed")
    words = ["export", f"run={folder}", f"to={tmp_path}/exported"]
    assert main(words) == 0
    assert capsys.readouterr().out.startswith(f"exported to {tmp_path}/exported: 0.")
    assert main(words) == 1
    assert capsys.readouterr().err == f"error: to = {tmp_path}/exported is not empty: choose a new folder\n"


def test_without_the_library_it_says_what_to_install(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optional, "find_spec", lambda name: None)
    assert main(["export", f"run={folder}", f"to={tmp_path}/exported"]) == 1
    expected = "error: Hugging Face export needs the package transformers: pip install 'bouton[hub]'\n"
    assert capsys.readouterr().err == expected


def test_both_folders_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "run=x"]) == 1
    assert "to=... is missing" in capsys.readouterr().err
