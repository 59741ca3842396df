import json
from pathlib import Path

import pytest
import torch
import yaml

from bouton.apps.evaluate import listed, shown, task_options
from bouton.cli.main import main
from bouton.data.tokenizers import IntegerTokenizer
from bouton.errors import ConfigError
from bouton.models.build import build


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run on generated data, with random weights."""
    data = {"name": "mqar", "num_pairs": 2, "vocab_size": 16, "query_power": 0.1, "random_fill": False,
            "train_rows": 100, "val_rows": 16, "seq_len": 16, "batch_size": 8, "val_tokens": None}  # fmt: skip
    shape = {"vocab_size": 16, "num_layers": 1, "hidden_size": 8, "num_heads": 2, "init_std": 0.3}
    config = {"seed": 0, "model": shape, "mechanism": {}, "data": data, "optimizer": {"name": "adamw"}}
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    tensors = {f"body.{name}": tensor for name, tensor in build(config).state_dict().items()}
    torch.save({"state_dict": tensors, "bouton": {"format": 1}}, tmp_path / "checkpoints" / "best.ckpt")
    IntegerTokenizer(16).save(tmp_path / "tokenizer")
    return tmp_path


def test_prints_a_table_and_writes_the_results(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["eval", f"run={folder}", "tasks=[recall,perplexity]", "recall.pairs=[1,2]", "recall.rows=8"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert out.index("recall") < out.index("perplexity") < out.index(f"results: {folder}/evaluation")
    assert "accuracy_1_pairs" in out and " to " in out
    written = json.loads((folder / "evaluation" / "recall.json").read_text())
    assert written["options"] == {"pairs": [1, 2], "rows": 8}
    assert main(words) == 0
    assert "measured before" in capsys.readouterr().out
    assert main([*words, "again=yes"]) == 0
    assert "measured before" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tasks=[cloze]"], "task cloze needs a run that was trained on text, this one has data=mqar"),
        (["tasks=[experts]"], "task experts: this run has no experts"),
        (["tasks=[recal]"], "task 'recal' is unknown: did you mean 'recall'?"),
        (["tasks=[recall]", "recall.row=8"], "recall.row is unknown: did you mean 'rows'?"),
        (["tasks=[recall]", "recal.rows=8"], "task 'recal' is unknown: did you mean 'recall'?"),
        (["tasks=[recall]", "recall.rows=many"], "recall.rows = 'many' is not valid"),
        (["tasks=[recall]", "again=perhaps"], "again = 'perhaps' is not valid: yes or no"),
        (["tasks=[recall]", "precision=half"], "precision = 'half' is unknown"),
    ],
)
def test_mistakes_are_one_line(
    folder: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", f"run={folder}", *words]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"error: {message}") and err.count("\n") == 1


def test_help_lists_tasks_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--help"]) == 0
    out = capsys.readouterr().out
    for text in ("calibration.bins", "needle.lengths", "[0.0, 0.25, 0.5, 0.75, 1.0]", "lm_eval:...", "again"):
        assert text in out


def test_words_become_options() -> None:
    assert listed("[a, b]") == listed("a,b") == ["a", "b"] and listed("all") == ["all"]
    found = task_options(["needle.lengths=[8,16]", "cloze.items=30", "needle.items=4", "lm_eval.include_path=a/b"])
    assert found == {"needle": {"lengths": [8, 16], "items": 4}, "cloze": {"items": 30},
                     "lm_eval": {"include_path": "a/b"}}  # fmt: skip
    with pytest.raises(ConfigError, match=r"needle\.items is given twice: 4 and 5"):
        task_options(["needle.items=4", "needle.items=5"])
    with pytest.raises(ConfigError, match="cannot be read"):
        task_options(["needle.items=[4"])


def test_numbers_for_a_person() -> None:
    assert [shown(x) for x in (3.0, 0.123456, 23046.4, float("nan"), 0.0, 1e6, float("inf"))] == [
        "3", "0.1235", "23,046", "-", "0", "1,000,000", "inf",
    ]  # fmt: skip
