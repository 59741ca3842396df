"""Runs that label tokens, from training to redacted text: the task ner, the commands, what they refuse."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import bouton
from bouton.cli.main import main
from bouton.data.pii import rules
from bouton.data.pii.bio import Document, Span
from bouton.data.pii.synthetic import generate
from bouton.data.tokenizers import ByteTokenizer
from bouton.errors import ConfigError, EvaluationError
from bouton.evaluation import evaluate
from bouton.evaluation.base import Result
from bouton.evaluation.subject import Subject
from bouton.evaluation.tasks.ner import _count, _put
from bouton.generation.redact import Redactor, Tagger, redact
from bouton.runs import Run
from bouton.training import train

TEXT = "Call Ada Bell on 555-123-4567.\n  Mr Osei\tlives in Oslo; see www.acorn.com or\n\nwrite to kim@acorn.com today "


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short training run: it hardly finds anything."""
    folder = tmp_path_factory.mktemp("pii") / "run"
    train(
        bouton.compose(
            "experiment=real_sam/pii_tiny", "model.hidden_size=48", "model.code_size=32", "data.train_texts=400",
            "data.val_texts=40", "data.test_texts=60", "data.batch_size=16", "data.tokenizer.vocab_size=400",
            "optimizer.lr=0.01", "trainer.max_steps=40", "trainer.val_every=20", "kernels=torch",
            "trainer.accelerator=cpu", f"run_dir={folder}",
        )
    )  # fmt: skip
    return folder


@pytest.fixture
def run(folder: Path) -> Run:
    """The run with a bias against O, so that there are entities of all kinds, also wrong ones."""
    run = bouton.load(folder, device="cpu", kernels="torch")
    with torch.no_grad():
        run.model.labels.linear.bias[0] -= 2.5
    return run


def test_training_says_f1(run: Run) -> None:
    columns = [c for c in run.metrics.columns if c.startswith("val/f1")]
    assert columns[0] == "val/f1" and "val/f1_PERSON" in columns and len(columns) == 12
    assert 0 <= run.summary["final"]["val_f1"] <= 1
    assert run.config.model.num_labels == run.model.num_labels == 23
    assert not (run.folder / "sample.txt").exists()


def test_numbers_are_those_of_the_spans(run: Run) -> None:
    result = evaluate(run, ["ner"], again=True)["ner"]
    documents = generate("test", 60, 0)
    for prefix, found in (
        ("", Tagger.of(run).spans([d.text for d in documents], 7)), ("rules_", [rules.find(d.text) for d in documents])
    ):  # fmt: skip
        hits = sum(len(set(ours) & set(d.spans)) for ours, d in zip(found, documents, strict=True))
        ours, true = sum(map(len, found)), sum(len(d.spans) for d in documents)
        assert result["numbers"][f"{prefix}f1"] == pytest.approx(2 * hits / (ours + true))
        assert result["numbers"][f"{prefix}precision"] == pytest.approx(hits / ours)
        assert result["numbers"][f"{prefix}recall"] == pytest.approx(hits / true)
    assert sum(row["entities"] for row in result["tables"]["types"]) == sum(len(d.spans) for d in documents)
    assert evaluate(run, ["ner"], {"ner": {"split": "val"}})["ner"]["notes"][0].startswith("40 texts of the val split")


def test_counts_by_hand() -> None:
    document = Document("", (Span(0, 3, "P"), Span(5, 9, "D"), Span(12, 14, "P")))
    predicted = [Span(0, 3, "P"), Span(5, 8, "D"), Span(12, 14, "D"), Span(20, 22, "Q")]
    counts = _count(document, predicted, ["P", "D"])
    assert counts == {"P": (1, 1, 2), "D": (0, 2, 1)}
    result = Result()
    _put(result, "", [counts, {"P": (1, 1, 1), "D": (0, 0, 0)}])
    assert result.numbers["precision"] == 2 / 4 and result.numbers["recall"] == 2 / 4 and result.numbers["f1"] == 4 / 8


def test_other_texts_and_only_their_types(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "other.jsonl"
    path.write_text(json.dumps({"text": "Ada Bell, 555-123-4567", "spans": [[0, 8, "person"]]}) + "\n")
    result = evaluate(run, ["ner"], {"ner": {"path": str(path)}})["ner"]
    assert [row["type"] for row in result["tables"]["types"]] == ["PERSON"]
    assert result["numbers"]["rules_f1"] == 1.0  # the number is no PERSON, and nothing else is asked for


@pytest.mark.parametrize("reset", ["line", "never"])
def test_a_stream_is_redacted_as_the_whole_text_is(run: Run, reset: str) -> None:
    tagger = Tagger.of(run)
    parts = TEXT.split("\n") if reset == "line" else [TEXT]
    expected = "\n".join(redact(part, spans) for part, spans in zip(parts, tagger.spans(parts, 1), strict=True))
    assert "[" in expected
    for size in (1, 2, 7, 1000):
        redactor = Redactor(tagger, reset)
        pieces = [redactor.push(TEXT[begin : begin + size]) for begin in range(0, len(TEXT), size)]
        assert "".join(pieces) + redactor.close() == expected
        assert size == 1000 or any(pieces[:-1])  # it does not wait for the end


class Capitals(torch.nn.Module):
    """Labels bytes one place after it has read them: a capital begins an entity, which goes on to a full stop."""

    num_labels, config = 5, None

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, tokens: torch.Tensor, state: tuple[int, int] | None = None) -> tuple[torch.Tensor, Any]:
        last, inside = state or (0, 0)
        logits = torch.zeros(*tokens.shape, 5)
        for row in range(len(tokens)):
            if row:
                last, inside = 0, 0
            for place, token in enumerate(tokens[row].tolist()):
                label = 1 if chr(last).isupper() and last < 256 else 2 if inside and chr(last) != "." else 0
                logits[row, place, label] = 1
                last, inside = token, label
        return logits, (last, inside)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hello Ada . and", "hello [P] . and"),  # the space before the full stop is no part of the name
        ("Ada and Bob.", "[P] [P]."),
        ("a B", "a [P]"),
        ("", ""),
        ("nobody", "nobody"),
    ],
)
def test_redaction_by_hand(text: str, expected: str) -> None:
    tagger = Tagger(Capitals(), ByteTokenizer(), ("P", "D"), 1)  # type: ignore[arg-type]
    for size in (1, 3, 100):
        redactor = Redactor(tagger, "never")
        out = "".join(redactor.push(text[begin : begin + size]) for begin in range(0, len(text), size))
        assert out + redactor.close() == expected
    assert redact(text, tagger.spans([text])[0]) == expected


def test_command_reads_words_files_and_standard_input(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    words = ["redact", f"run={folder}", "kernels=torch", "device=cpu"]
    assert main([*words, f"file={tmp_path / 'a.txt'}"]) == 0
    expected = capsys.readouterr().out
    tagger = Tagger.of(bouton.load(folder, device="cpu", kernels="torch"))
    lines = TEXT.split("\n")
    assert expected == "\n".join(redact(t, s) for t, s in zip(lines, tagger.spans(lines, 1), strict=True))
    monkeypatch.setattr("sys.stdin", io.StringIO(TEXT))
    assert main(words) == 0
    assert capsys.readouterr().out == expected
    assert main([*words, *(f"text={line}" for line in lines)]) == 0
    assert capsys.readouterr().out == expected + "\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["text=a", "file=b"], "text and file are both given"),
        (["file=nowhere.txt"], "file = nowhere.txt: there is no such file"),
        (["text=a", "reset=word"], "reset = 'word' is not valid: line or never"),
        (["text=a", "rset=line"], "option 'rset' is unknown: did you mean 'reset'"),
    ],
)
def test_errors_of_the_command_are_one_line(
    folder: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["redact", f"run={folder}", *words]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_runs_that_learned_something_else_are_refused(recall: Run) -> None:
    with pytest.raises(ConfigError, match="finds no entities: it was trained on data=mqar, not data=pii"):
        Tagger.of(recall)
    with pytest.raises(
        EvaluationError, match="task ner needs a run that was trained on data=pii, this one has data=mqar"
    ):
        evaluate(recall, ["ner"])


def test_what_needs_a_language_model_refuses_a_run_that_labels(run: Run) -> None:
    with pytest.raises(ConfigError, match="labels tokens and cannot continue a text: use bouton redact"):
        run.generate("a")
    for task in ("perplexity", "cloze", "needle", "repetition"):
        with pytest.raises(EvaluationError, match="label"):
            evaluate(run, [task])
    assert not Subject(run).is_text


def test_calibration_of_labels(run: Run) -> None:
    numbers = evaluate(run, ["calibration"], {"calibration": {"resamples": 100}})["calibration"]["numbers"]
    assert 0 <= numbers["ece"] <= 1
