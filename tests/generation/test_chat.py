from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bouton.data.chat import MARKERS, ChatTemplate, Message
from bouton.data.tokenizers import ByteTokenizer, IntegerTokenizer, Tokenizer, train_bpe
from bouton.errors import CheckpointError, ConfigError, DataError
from bouton.generation import chat as module
from bouton.generation.chat import Chat
from bouton.generation.sampling import Sampling

from .toys import Script, tiny

GREEDY = Sampling(temperature=0.0)
ID = {"checkpoint": "a"}


def counted(model: Any) -> list[int]:
    """The lengths of all inputs that the model reads from now on."""
    lengths: list[int] = []
    model.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    return lengths


def logits_of(model: Any, tokens: list[int]) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model.eval()(torch.tensor([tokens]))[0][0, -1]
    return logits


@pytest.fixture(params=["bytes", "markers"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return ByteTokenizer() if request.param == "bytes" else train_bpe(["a"], 261, MARKERS)


def test_turns_go_on_as_if_all_were_read_again(tokenizer: Tokenizer) -> None:
    model = tiny(vocab_size=tokenizer.vocab_size)
    template = ChatTemplate(tokenizer)
    chat = Chat(model, tokenizer, system="Be kind.", sampling=GREEDY, max_new_tokens=6)
    tokens = [tokenizer.eot_id, *template.turn(Message("system", "Be kind."))]
    for text in ("Hello", " and then? ", "für"):
        tokens += template.turn(Message("user", text.strip())) + template.header("assistant")
        expected: list[int] = []
        for _ in range(6):
            token = int(logits_of(model, tokens + expected)[: tokenizer.vocab_size].argmax())
            if token in {tokenizer.eot_id, template.end_id, *template.marker_ids}:
                break
            expected.append(token)
        assert "".join(chat.reply(text)) == tokenizer.decode(expected)
        tokens += [*expected, template.end_id]


def test_a_turn_reads_only_what_is_new() -> None:
    model = tiny()
    chat = Chat(model, ByteTokenizer(), max_new_tokens=5, sampling=GREEDY)
    lengths = counted(model)
    header = len(ChatTemplate(ByteTokenizer()).header("user")) + len(ChatTemplate(ByteTokenizer()).header("assistant"))
    list(chat.reply("abc"))
    first = list(lengths)
    assert first[0] == 1 + header + 3 + 1 and set(first[1:]) == {1}
    lengths.clear()
    list(chat.reply("abcd"))
    left = 2 if chat.finish == "max_new_tokens" or len(first) == 5 else 1  # the last token drawn and the turn's end
    assert lengths[0] == left + header + 4 + 1 and set(lengths[1:]) == {1}
    assert chat.length == sum(first) + sum(lengths)


def test_the_reply_ends_with_the_turn() -> None:
    chat = Chat(Script(b"yes", eot=True), ByteTokenizer())
    assert "".join(chat.reply("?")) == "yes" and chat.finish == "end"
    chat = Chat(Script(b"yes"), ByteTokenizer(), max_new_tokens=7, sampling=GREEDY)
    assert "".join(chat.reply("?")) == "yesyesy" and chat.finish == "max_new_tokens"
    assert list(Chat(Script("ü".encode()[:1]), ByteTokenizer(), max_new_tokens=1).reply("?")) == ["", "\ufffd"]


@pytest.mark.parametrize("cut", [0, 2])
def test_a_reply_that_is_closed_early_ends_its_turn(cut: int) -> None:
    model, tokenizer = tiny(), ByteTokenizer()
    template = ChatTemplate(tokenizer)
    chat = Chat(model, tokenizer, sampling=GREEDY, max_new_tokens=4)
    pieces = chat.reply("a")
    said = tokenizer.encode("".join(next(pieces) for _ in range(cut)))
    pieces.close()  # type: ignore[attr-defined]
    tokens = [tokenizer.eot_id]
    if cut:
        tokens += [*template.turn(Message("user", "a")), *template.header("assistant"), *said, template.end_id]
    tokens += [*template.turn(Message("user", "b")), *template.header("assistant")]
    expected = int(logits_of(model, tokens)[:256].argmax())
    assert next(chat.reply("b")) == tokenizer.decode([expected])


def test_the_window_is_said_and_reset_begins_anew() -> None:
    model = tiny(position="learned", max_seq_len=40)
    chat = Chat(model, ByteTokenizer(), max_new_tokens=50, sampling=GREEDY)
    chat._ends = set()  # it would end its turn before the window ends
    first = "".join(chat.reply("hi"))
    assert chat.finish == "max_seq_len" and chat.length == chat.limit == 40 and len(first) > 0
    assert list(chat.reply("more")) == [] and chat.finish == "max_seq_len"
    chat.reset()
    assert "".join(chat.reply("hi")) == first
    assert list(Chat(model, ByteTokenizer()).reply("x" * 60)) == []


def test_the_penalty_sees_texts_and_no_markers(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []

    def spy(logits: Tensor, sampling: Sampling, generators: Any, history: Tensor) -> Tensor:
        seen.append(history[0].tolist())
        assert sampling == Sampling(temperature=0.7, top_k=50, repetition_penalty=1.15, repetition_window=100)
        return torch.tensor([ord("z")])

    monkeypatch.setattr(module, "sample", spy)
    chat = Chat(Script(b"?"), ByteTokenizer(), max_new_tokens=3)
    list(chat.reply("ab"))
    assert seen == [[97, 98], [97, 98, 122], [97, 98, 122, 122]]
    list(chat.reply("c" * 200))
    assert seen[-1] == [99] * 98 + [122] * 2


@pytest.mark.parametrize("mechanism", [None, "hebb+presyn"])
def test_a_saved_conversation_goes_on_exactly(mechanism: str | None, tmp_path: Path) -> None:
    import bouton

    sizes = ["model.num_layers=1", "model.hidden_size=16", "model.num_heads=2", "model.vocab_size=257"]
    words = [*sizes, "model=tiny", f"mechanism={mechanism or 'none'}"]
    model = bouton.build(bouton.compose(*words))
    options: dict[str, Any] = {"max_new_tokens": 12, "seed": 3}
    chat = Chat(model, ByteTokenizer(), **options)
    list(chat.reply("first"))
    chat.save(tmp_path / "talk.safetensors", ID)
    expected = "".join(chat.reply("second"))
    other = Chat(model, ByteTokenizer(), **options)
    list(other.reply("something else"))
    other.load(tmp_path / "talk.safetensors", ID)
    assert "".join(other.reply("second")) == expected
    again = Chat(model, ByteTokenizer(), **options)
    again.save(tmp_path / "fresh.safetensors", ID)  # before the first turn there is no state
    again.load(tmp_path / "fresh.safetensors", ID)
    list(again.reply("first"))
    assert "".join(again.reply("second")) == expected


def test_files_that_are_no_conversation_change_nothing(tmp_path: Path) -> None:
    model = tiny()
    chat, twin = (Chat(model, ByteTokenizer(), max_new_tokens=4) for _ in range(2))
    for each in (chat, twin):
        list(each.reply("a"))
    chat.save(tmp_path / "a", ID)
    (tmp_path / "b").write_bytes(b"no safetensors")
    with pytest.raises(DataError, match="is no saved conversation"):
        chat.load(tmp_path / "b", ID)
    with pytest.raises(DataError, match="no such file"):
        chat.load(tmp_path / "c", ID)
    with pytest.raises(CheckpointError, match="another model"):
        chat.load(tmp_path / "a", {"checkpoint": "b"})
    with pytest.raises(DataError, match="cannot be written"):
        chat.save(tmp_path / "a" / "b", ID)
    assert "".join(chat.reply("b")) == "".join(twin.reply("b"))


def test_a_reply_leaves_the_model_as_it_was() -> None:
    model = tiny(dropout=0.5).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    texts = ["".join(Chat(model, ByteTokenizer(), max_new_tokens=8).reply("a")) for _ in range(2)]
    assert model.training and texts[0] == texts[1]  # without dropout, from the same seed
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_bad_options() -> None:
    with pytest.raises(ConfigError, match="max_new_tokens = 0"):
        Chat(tiny(), ByteTokenizer(), max_new_tokens=0)
    with pytest.raises(DataError, match="cannot write conversations"):
        Chat(tiny(), IntegerTokenizer(8))
