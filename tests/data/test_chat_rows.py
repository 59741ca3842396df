from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from bouton.data import ByteTokenizer, Tokenizer, open_store, train_bpe
from bouton.data.chat import MARKERS, ChatTemplate, Conversation, Message
from bouton.data.chat_rows import ChatRows, _pack
from bouton.data.chat_source import ChatSource
from bouton.data.chat_store import prepare_chat
from bouton.data.store import TokenStore


def talk(number: int, turns: int = 1, length: int = 5) -> Conversation:
    """Each text occurs once: ``q<number>.<turn>`` and ``a<number>.<turn>`` filled up to ``length``."""
    pairs = [
        (
            Message("user", f"q{number}.{n}".ljust(length, "?")),
            Message("assistant", f"a{number}.{n}".ljust(length, "!")),
        )
        for n in range(turns)
    ]
    return tuple(message for pair in pairs for message in pair)


def store_of(talks: list[Conversation], tmp_path: Path, tokenizer: Tokenizer) -> TokenStore:
    source = ChatSource(
        "chat", {"train": lambda: iter(talks), "val": lambda: iter(talks[:1])}, facts={"n": len(talks)},
        val_fraction=0.5, max_bytes=None,
    )  # fmt: skip
    return open_store(prepare_chat(source, tokenizer, tmp_path) / "train")


def rows_of(talks: list[Conversation], tmp_path: Path, tokenizer: Tokenizer, seq_len: int) -> ChatRows:
    return ChatRows(store_of(talks, tmp_path, tokenizer), seq_len, ChatTemplate(tokenizer))


def markers() -> Tokenizer:
    return train_bpe(["question answer"], 261, MARKERS)


@pytest.fixture(params=["bytes", "markers"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return ByteTokenizer() if request.param == "bytes" else markers()


def everything(rows: ChatRows) -> dict[str, torch.Tensor]:
    return rows.gather(np.arange(len(rows), dtype=np.int64))


def answers(batch: dict[str, torch.Tensor], tokenizer: Tokenizer, end: int) -> list[str]:
    """The learned stretches as text; each must close with the end of the turn, written here as a full stop."""
    found = []
    for row in batch["targets"].tolist():
        text = "".join("\0" if t == -100 else "\1" if t == end else tokenizer.decode([t]) for t in row)
        found += [part for part in text.split("\0") if part]
    return found


def test_every_answer_is_in_one_row_with_what_it_answers(tmp_path: Path, tokenizer: Tokenizer) -> None:
    talks = [talk(n, turns=1 + n % 3, length=5 + n % 7) for n in range(40)]
    template = ChatTemplate(tokenizer)
    rows = rows_of(talks, tmp_path, tokenizer, 160)
    batch = everything(rows)
    assert rows.dropped == 0 and "dropped" not in rows.note
    expected = [f"{m.text}\1" for t in talks for m in t if m.role == "assistant"]
    assert sorted(answers(batch, tokenizer, template.end_id)) == sorted(expected)
    # every document of a row is a conversation as the template writes it, without its last token
    documents = set()
    for tokens, starts in zip(batch["tokens"].tolist(), batch["starts"].tolist(), strict=True):
        edges = [*[i for i, start in enumerate(starts) if start], len(tokens)]
        assert edges[0] == 0
        documents |= {tuple(tokens[a:b]) for a, b in itertools.pairwise(edges)}
    written = {tuple(template.encode(t).tokens[:-1].tolist()) for t in talks}
    fill = {d for d in documents if set(d) == {tokenizer.eot_id}}
    assert documents - fill == written


def test_targets_are_the_next_token_and_nothing_else(tmp_path: Path, tokenizer: Tokenizer) -> None:
    talks = [talk(n, turns=3) for n in range(25)]
    batch = everything(rows_of(talks, tmp_path, tokenizer, 200))
    tokens, targets, starts = batch["tokens"], batch["targets"], batch["starts"]
    inner = (targets[:, :-1] != -100) & ~starts[:, 1:]
    assert inner.sum() > 400
    assert torch.equal(targets[:, :-1][inner], tokens[:, 1:][inner])
    assert (targets[starts] == -100).all()  # the first token of a conversation predicts a marker, which is not learned


def test_a_model_that_copies_learns_nothing(tmp_path: Path) -> None:
    """Of random answers nothing can be known before they are said; a model that sees only its input stays at chance."""
    generator = np.random.default_rng(0)
    words = ["".join(generator.choice(list("abcdefgh"), 40)) for _ in range(200)]
    talks = [(Message("user", "say"), Message("assistant", word)) for word in words]
    batch = everything(rows_of(talks, tmp_path, ByteTokenizer(), 64))
    learned = batch["targets"] != -100
    table = torch.zeros(257, 257, requires_grad=True)  # logits of the next token given this one
    optimizer = torch.optim.Adam([table], lr=0.1)
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(table[batch["tokens"][learned]], batch["targets"][learned])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) > 0.9 * np.log(8) * 40 / 42  # of 42 targets the header's and the end's are certain


def test_long_conversations_are_split_behind_answers(tmp_path: Path, tokenizer: Tokenizer) -> None:
    template = ChatTemplate(tokenizer)
    talks = [talk(0, turns=9), talk(1, turns=2)]
    pair = len(template.encode(talk(0)).tokens) - 1
    rows = rows_of(talks, tmp_path, tokenizer, 2 * pair + 1)
    batch = everything(rows)
    assert rows.dropped == 0
    expected = [f"{m.text}\1" for t in talks for m in t if m.role == "assistant"]
    assert sorted(answers(batch, tokenizer, template.end_id)) == sorted(expected)
    assert len(rows.pieces) == 5 + 1
    for row, starts in zip(batch["tokens"].tolist(), batch["starts"].tolist(), strict=True):
        for index in np.flatnonzero(starts).tolist():
            assert row[index] == tokenizer.eot_id
            header = row[index + 1 : index + 1 + len(template.header("user"))]
            assert header == template.header("user") or set(row[index:]) == {tokenizer.eot_id}


def documents(batch: dict[str, torch.Tensor]) -> list[tuple[list[int], list[int]]]:
    """(tokens, targets) of everything that begins with fresh state."""
    found = []
    for tokens, targets, starts in zip(*(batch[n].tolist() for n in ("tokens", "targets", "starts")), strict=True):
        edges = [*[i for i, start in enumerate(starts) if start], len(tokens)]
        found += [(tokens[a:b], targets[a:b]) for a, b in itertools.pairwise(edges)]
    return found


@pytest.mark.parametrize("systems", [["Be kind."], ["Be kind.", "Rhyme."]], ids=["one", "two"])
def test_later_parts_repeat_the_system_turn(tmp_path: Path, tokenizer: Tokenizer, systems: list[str]) -> None:
    template = ChatTemplate(tokenizer)
    system = tuple(Message("system", text) for text in systems)
    talks = [(*system, *talk(0, turns=7)), talk(1, turns=4), (*system, *talk(2))]
    head = len(template.encode(system).tokens) - 1
    pair = len(template.encode(talk(0)).tokens) - 1
    rows = rows_of(
        talks, tmp_path, tokenizer, head + 2 * pair
    )  # eot, the system turns, two exchanges but for their end
    batch = everything(rows)
    assert rows.dropped == 0 and "; 3 later parts of conversations repeat the system turn" in rows.note
    assert f", {sum(m.role == 'assistant' for t in talks for m in t) * 6} learned tokens" in rows.note
    # a part is what the template makes of the system turns and its exchanges, token by token and target by target
    expected = [
        template.encode((*start, *talk(number, turns=7)[2 * turn : 2 * turn + 2 * count]))
        for number, start, turn, count in [(0, system, t, 2) for t in (0, 2, 4)]
        + [(0, system, 6, 1), (2, system, 0, 1)]
    ]
    found = {tuple(tokens): targets for tokens, targets in documents(batch)}
    for encoded in expected:
        targets = found[tuple(encoded.tokens[:-1].tolist())]
        assert targets == np.where(encoded.learned[1:], encoded.tokens[1:], -100).tolist()
    answered = [f"{m.text}\1" for t in talks for m in t if m.role == "assistant"]
    assert sorted(answers(batch, tokenizer, template.end_id)) == sorted(answered)


def test_a_system_turn_of_more_than_half_a_row_is_not_repeated(tmp_path: Path, tokenizer: Tokenizer) -> None:
    template = ChatTemplate(tokenizer)
    long = (Message("system", "s" * 40), *talk(0, turns=6))
    head = len(template.encode(long[:1]).tokens) - 1
    batches = {size: rows_of([long], tmp_path / str(size), tokenizer, size) for size in (2 * head - 1, 2 * head)}
    for size, rows in batches.items():
        repeated = rows.systems[:, 1] > rows.systems[:, 0]
        assert repeated.any() == (size == 2 * head) == ("repeat" in rows.note), size


def test_what_is_longer_than_a_row_is_counted(tmp_path: Path, tokenizer: Tokenizer) -> None:
    template = ChatTemplate(tokenizer)
    endless = (Message("user", "q"), Message("assistant", "b" * 300))
    deaf = (Message("user", "q" * 300), Message("assistant", "c"))
    mixed = (*talk(0), *endless, *talk(1), *deaf, *talk(2))
    store = store_of([endless, deaf, mixed], tmp_path, tokenizer)
    rows = ChatRows(store, 64, template)
    batch = everything(rows)
    found = answers(batch, tokenizer, template.end_id)
    assert sorted(found)[:3] == ["a0.0!\1", "a1.0!\1", "a2.0!\1"]
    cut = [text for text in found if text.startswith("b")]
    assert len(cut) == 2 and all(set(text) == {"b"} and 0 < len(text) <= 64 for text in cut)
    assert not any("c" in text for text in found)
    held = sum(len(template.encode(talk(n)).tokens) for n in range(3)) + 2 * 65
    assert rows.dropped == pytest.approx(len(store) - held, abs=3)  # tokens that two parts share
    lost = 2 * (300 + 1) + 2 * 2 - sum(map(len, cut))
    assert f"{lost} of " in rows.note and f"{rows.dropped} of {len(store)} tokens" in rows.note


def test_fillers_and_any_order_of_rows(tmp_path: Path) -> None:
    rows = rows_of([talk(n, 1 + n % 4) for n in range(30)], tmp_path, markers(), 50)
    whole = everything(rows)
    order = np.array([3, -1, 0, 3])
    some = rows.gather(order)
    for name in ("tokens", "targets", "starts"):
        assert torch.equal(some[name][[0, 2, 3]], whole[name][[3, 0, 3]])
    assert (some["targets"][1] == -100).all() and some["starts"][1, 0]
    filler = rows.gather(np.array([-1]))
    assert (filler["targets"] == -100).all() and filler["tokens"].shape == (1, 50)


def test_packing_wastes_little_and_overfills_nothing() -> None:
    places = np.random.default_rng(0).integers(1, 61, 3000)
    row = _pack(places, 100)
    held = np.bincount(row, weights=places)
    assert held.max() <= 100
    assert len(held) <= 1.02 * np.ceil(places.sum() / 100)
    assert np.array_equal(row, _pack(places, 100))
