import io
from pathlib import Path

import pytest
import torch
import yaml

import bouton
from bouton.cli.main import main
from bouton.data.tokenizers import ByteTokenizer, IntegerTokenizer
from bouton.generation.chat import Chat
from bouton.generation.sampling import Sampling
from bouton.models.build import build


def run_folder(folder: Path, data: str, position: str = "rope", vocab_size: int = 257) -> Path:
    """A run folder with random weights."""
    model = {"vocab_size": vocab_size, "num_layers": 1, "hidden_size": 16, "num_heads": 2, "init_std": 0.3,
             "position": position, "max_seq_len": 48}  # fmt: skip
    config = {"seed": 0, "model": model, "mechanism": {}, "data": {"name": data}}
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    tensors = {f"body.{name}": tensor for name, tensor in build(config).state_dict().items()}
    torch.save({"state_dict": tensors, "bouton": {"format": 1}}, folder / "checkpoints" / "best.ckpt")
    (ByteTokenizer() if vocab_size == 257 else IntegerTokenizer(vocab_size)).save(folder / "tokenizer")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_folder(tmp_path_factory.mktemp("runs") / "chat", "chat")


def talk(monkeypatch: pytest.MonkeyPatch, text: str, *words: str) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    return main(["chat", *words])


def replies(folder: Path, turns: list[str], **options: object) -> list[str]:
    run = bouton.load(folder)
    chat = Chat(run.model, run.tokenizer, max_new_tokens=8, **options)  # type: ignore[arg-type]
    return ["".join(chat.reply(turn)) for turn in turns]


def test_each_line_gets_an_answer(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert talk(monkeypatch, "hello\n\n  and then?\n", str(folder), "max_new_tokens=8") == 0
    out, err = capsys.readouterr()
    assert out == "".join(f"{text}\n" for text in replies(folder, ["hello", "and then?"]))
    assert "never fine-tuned" not in err


def test_options_reach_the_conversation(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {"temperature": 1.7, "top_k": 9, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.5}
    words |= {"repetition_window": 7}
    given = [f"{key}={value}" for key, value in words.items()]
    talk(monkeypatch, "x", f"run={folder}", "max_new_tokens=8", "seed=2", "system=Be kind.", *given)
    sampling = Sampling(**words)  # type: ignore[arg-type]
    assert capsys.readouterr().out == replies(folder, ["x"], sampling=sampling, seed=2, system="Be kind.")[0] + "\n"


def test_commands(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "talk.safetensors"
    lines = ["one", f"/save {file}", "two", "/reset", "one", f"/load {file}", "two", "/exit", "never read"]
    assert talk(monkeypatch, "\n".join(lines), str(folder), "max_new_tokens=8") == 0
    out, err = capsys.readouterr()
    first, second = replies(folder, ["one", "two"])
    assert out == f"{first}\n{second}\n{first}\n{second}\n"
    assert file.is_file() and f"to {file}" in err and "a new conversation" in err and "going on after" in err


def test_mistakes_in_commands_are_said_and_the_conversation_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    lines = ["one", "/save", "/sav x", f"/load {tmp_path / 'nothing'}", "/reset now", "/help", "two"]
    assert talk(monkeypatch, "\n".join(lines), str(folder), "max_new_tokens=8") == 0
    out, err = capsys.readouterr()
    assert out == "".join(f"{text}\n" for text in replies(folder, ["one", "two"]))
    for said in ("/save needs a file", "did you mean '/save'", "no such file", "/reset takes nothing", "/load FILE"):
        assert said in err
    assert err.count("error: ") == 4


def test_a_conversation_belongs_to_its_checkpoint(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    other = run_folder(tmp_path / "other", "text", position="learned")
    talk(monkeypatch, f"a\n/save {tmp_path / 't'}", str(folder), "max_new_tokens=3")
    capsys.readouterr()
    talk(monkeypatch, f"/load {tmp_path / 't'}", str(other))
    assert "with another model" in capsys.readouterr().err


def test_a_run_that_never_saw_turns_and_the_end_of_its_window_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = run_folder(tmp_path / "run", "stdlib", position="learned")
    assert talk(monkeypatch, "hello\nagain", str(folder), "repetition_penalty=100", "temperature=0") == 0
    err = capsys.readouterr().err
    assert err.count("never fine-tuned on conversations") == 1
    assert "the window is full (model.max_seq_len = 48, learned positions): /reset begins anew" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run={f}", "promt=a"], "option 'promt' is unknown"),
        (["run={f}", "temperature=-1"], "temperature = -1.0 is not valid"),
        (["run={f}", "max_new_tokens=0"], "max_new_tokens = 0"),
        (["run={f}/nothing"], "no such folder"),
        ([], "run=... is missing"),
    ],
)
def test_mistakes_are_one_line_and_exit_1(
    folder: Path,
    words: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert talk(monkeypatch, "hello", *(word.replace("{f}", str(folder)) for word in words)) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and said in err


def test_a_model_of_numbers_does_not_talk(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = run_folder(tmp_path / "run", "mqar", vocab_size=16)
    assert talk(monkeypatch, "1 2", str(folder)) == 1
    assert "cannot write conversations" in capsys.readouterr().err
