import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

import bouton
from bouton.apps import generate as app
from bouton.cli.main import main
from bouton.data.tokenizers import ByteTokenizer
from bouton.generation import Piece
from bouton.models.build import build


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with random weights and learned positions."""
    folder = tmp_path_factory.mktemp("run")
    model = {"vocab_size": 257, "num_layers": 1, "hidden_size": 16, "num_heads": 2, "init_std": 0.3,
             "position": "learned", "max_seq_len": 16}  # fmt: skip
    config = {"seed": 0, "model": model, "mechanism": {}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "checkpoints").mkdir()
    tensors = {f"body.{name}": tensor for name, tensor in build(config).state_dict().items()}
    torch.save({"state_dict": tensors, "bouton": {"format": 1}}, folder / "checkpoints" / "best.ckpt")
    ByteTokenizer().save(folder / "tokenizer")
    return folder


def test_prints_prompt_and_continuation(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", f"run={folder}", "prompt=ab", "max_new_tokens=6", "seed=4"]) == 0
    out, err = capsys.readouterr()
    expected = bouton.load(folder).generate("ab", max_new_tokens=6, seed=4)
    assert out == f"ab{expected}\n"
    assert "tokens/s" in err


def test_options_reach_the_sampler(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = {"temperature": 1.7, "top_k": 9, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.5, "seed": 2}
    main(["generate", f"run={folder}", "prompt=x", *(f"{key}={value}" for key, value in words.items())])
    expected = bouton.load(folder).generate("x", max_new_tokens=200, **words)
    assert capsys.readouterr().out == f"x{expected}\n"


def test_several_prompts_and_samples_come_in_order(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["generate", f"run={folder}", "prompt=a", "prompt=b", "num_samples=2", "max_new_tokens=5"])
    texts = bouton.load(folder).generate(["a", "b"], num_samples=2, max_new_tokens=5)
    expected = [
        f"--- prompt {p + 1} of 2, sample {s + 1} of 2\n{prompt}{texts[2 * p + s]}\n"
        for p, prompt in enumerate("ab")
        for s in range(2)
    ]
    assert capsys.readouterr().out == "\n".join(expected)


def test_prompt_from_a_file_and_from_standard_input(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prompt.txt").write_text("naïve", encoding="utf-8")
    main(["generate", f"run={folder}", f"prompt_file={tmp_path / 'prompt.txt'}", "max_new_tokens=0"])
    assert capsys.readouterr().out == "naïve\n"
    monkeypatch.setattr("sys.stdin", io.StringIO("typed"))
    main(["generate", f"run={folder}", "prompt_file=-", "max_new_tokens=0"])
    assert capsys.readouterr().out == "typed\n"


def test_the_end_of_the_positions_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["generate", f"run={folder}", "prompt=abcdefghijklmn", "temperature=0", "max_new_tokens=9"])
    assert "model.max_seq_len = 16" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run={f}", "promt=a"], "did you mean 'prompt'"),
        (["run={f}", "temperature=-1"], "temperature = -1.0 is not valid"),
        (["run={f}", "top_k=1.5"], "top_k = '1.5'"),
        (["run={f}", "max_new_tokens=-1"], "max_new_tokens = -1"),
        (["run={f}", "prompt=a", "prompt_file=b"], "both given"),
        (["run={f}", "prompt_file={f}/nothing"], "no such file"),
        (["run={f}", "stop="], "stop = ''"),
        (["run={f}", "prompt=abcdefghijklmnopq"], "18 tokens"),
        (["run={f}", "checkpoint=last"], "this run has best"),
        (["run={f}", "device=toaster"], "device = toaster"),
        (["run={f}", "kernels=cuda"], "kernels.backend = 'cuda'"),
        (["run={f}/nothing"], "no such folder"),
        (["prompt=a"], "run=... is missing"),
    ],
)
def test_mistakes_are_one_line_and_exit_1(
    folder: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", *(word.replace("{f}", str(folder)) for word in words)]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and said in err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    def pieces() -> Iterator[Piece]:
        yield Piece(0, "a\x1b[2J\n\tb\x9b", 1)
        yield Piece(0, "", None, "eot")

    terminal, pipe = Terminal(), io.StringIO()
    app._print(pieces(), [""], 1, terminal)
    assert "a\ufffd[2J\n\tb\ufffd\n" in terminal.getvalue()
    app._print(pieces(), [""], 1, pipe)
    assert pipe.getvalue() == "a\x1b[2J\n\tb\x9b\n"
    capsys.readouterr()


def test_interleaved_rows_are_printed_one_after_the_other(capsys: pytest.CaptureFixture[str]) -> None:
    out = io.StringIO()
    seen = []

    def pieces() -> Iterator[Piece]:
        yield Piece(0, "A", 1)
        yield Piece(1, "x", 1)
        seen.append(out.getvalue())
        yield Piece(0, "B", 1, "stop")
        seen.append(out.getvalue())
        yield Piece(1, "y", 1, "eot")

    finishes = app._print(pieces(), ["p"], 2, out)
    assert finishes == ["stop", "eot"]
    assert seen[0].endswith("pA")
    assert seen[1].endswith("pAB\n\n--- sample 2 of 2\npx")
    assert out.getvalue().endswith("pxy\n")
    capsys.readouterr()
