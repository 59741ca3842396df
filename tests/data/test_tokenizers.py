from __future__ import annotations

import json
from pathlib import Path

import pytest

from bouton.data import ByteTokenizer, StreamDecoder, Tokenizer, load_tokenizer, train_bpe
from bouton.data.tokenizers import IntegerTokenizer, load_bpe, load_gpt2, split_words, train_words
from bouton.errors import ConfigError, DataError

from .conftest import story

TEXT = "Zürich — 東京 🧠 <|endoftext|> tabs\tand\r\nlines  "


def tokenizers() -> list[Tokenizer]:
    return [ByteTokenizer(), train_bpe((story(n) for n in range(50)), 400)]


@pytest.mark.parametrize("tokenizer", tokenizers(), ids=lambda t: t.kind)
def test_round_trip_and_bytes(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT)
    assert tokenizer.decode(ids) == TEXT
    assert tokenizer.token_bytes[ids].sum() == len(TEXT.encode())
    assert tokenizer.eot_id not in ids  # the characters of the special token are text
    assert tokenizer.token_bytes[tokenizer.eot_id] == 0
    assert len(tokenizer.token_bytes) == tokenizer.vocab_size > max(ids)
    assert [a.tolist() for a in tokenizer.encode_batch([TEXT, "", "a"])] == [ids, [], tokenizer.encode("a")]


@pytest.mark.parametrize("tokenizer", tokenizers(), ids=lambda t: t.kind)
def test_save_and_load(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "t")
    loaded = load_tokenizer(tmp_path / "t")
    assert loaded.encode(TEXT) == tokenizer.encode(TEXT)
    assert (loaded.fingerprint, loaded.eot_id, loaded.vocab_size, loaded.kind) == (
        tokenizer.fingerprint, tokenizer.eot_id, tokenizer.vocab_size, tokenizer.kind)  # fmt: skip


@pytest.mark.parametrize("tokenizer", tokenizers(), ids=lambda t: t.kind)
def test_decoding_cut_characters(tokenizer: Tokenizer) -> None:
    brain = ByteTokenizer().encode("a🧠")
    assert ByteTokenizer().decode(brain[:-1]) == "a\N{REPLACEMENT CHARACTER}"
    assert tokenizer.decode([tokenizer.vocab_size + 5]) == "\N{REPLACEMENT CHARACTER}"

    decoder = StreamDecoder(tokenizer)
    pushed = [decoder.push(token) for token in tokenizer.encode(TEXT)]
    assert "".join(pushed) + decoder.flush() == TEXT
    assert not any("\N{REPLACEMENT CHARACTER}" in part for part in pushed)


def test_stream_decoder_holds_back_and_flushes() -> None:
    decoder = StreamDecoder(ByteTokenizer())
    first, second, *_ = "é".encode()
    assert decoder.push(first) == ""
    assert decoder.push(second) == "é"
    assert decoder.push(first) == ""
    assert decoder.flush() == "\N{REPLACEMENT CHARACTER}"


def test_training_is_deterministic_and_depends_on_the_text() -> None:
    first, second = (train_bpe((story(n) for n in range(50)), 350) for _ in range(2))
    assert first.fingerprint == second.fingerprint
    assert first.fingerprint != train_bpe((story(n) for n in range(60, 90)), 350).fingerprint
    assert first.vocab_size == 350
    assert len(first.encode(story(3))) < len(story(3).encode()) / 1.3


def test_lone_surrogates_do_not_crash() -> None:
    for tokenizer in tokenizers():
        assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a?b"


def test_too_small_a_vocabulary() -> None:
    with pytest.raises(ConfigError, match=r"data\.tokenizer\.vocab_size=200 is too small.*257"):
        train_bpe(["abc"], 200)


def test_gpt2_files_from_a_local_path(tmp_path: Path) -> None:
    trained = train_bpe((story(n) for n in range(50)), 300)
    trained.save(tmp_path / "json")
    model = json.loads((tmp_path / "json" / "tokenizer.json").read_text())["model"]
    pair = tmp_path / "pair"
    pair.mkdir()
    (pair / "vocab.json").write_text(json.dumps(model["vocab"]))
    (pair / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(m) for m in model["merges"]))
    for path in (tmp_path / "json", tmp_path / "json" / "tokenizer.json", pair):
        tokenizer = load_gpt2(path)
        assert tokenizer.kind == "gpt2"
        assert tokenizer.encode(TEXT) == trained.encode(TEXT)
        assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
        assert tokenizer.token_bytes[tokenizer.eot_id] == 0


def test_gpt2_without_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def absent(*args: object, **kwargs: object) -> None:
        raise LocalEntryNotFoundError("not in the cache")

    def refuse(*args: object, **kwargs: object) -> None:
        raise ConnectionError("name not known\nsecond line")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", absent)
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", refuse)
    with pytest.raises(DataError, match=r"tokenizer.json of openai-community/gpt2 .*data\.tokenizer\.path=") as caught:
        load_gpt2()
    assert "\n" not in str(caught.value)


def test_bad_tokenizers(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.tokenizer\.path=.*no such tokenizer"):
        load_bpe(tmp_path / "nowhere")
    broken = tmp_path / "tokenizer.json"
    broken.write_text("{}")
    with pytest.raises(DataError, match="cannot be read") as caught:
        load_bpe(broken)
    assert "\n" not in str(caught.value)

    from tokenizers import Tokenizer as Model
    from tokenizers import decoders, models

    Model(models.WordLevel({"a": 0})).save(str(broken))
    with pytest.raises(DataError, match="not a byte-level BPE"):
        load_bpe(broken)
    plain = Model(models.BPE())
    plain.decoder = decoders.ByteLevel()
    plain.save(str(broken))
    with pytest.raises(DataError, match="has no token"):
        load_bpe(broken)

    with pytest.raises(DataError, match="no tokenizer at"):
        load_tokenizer(tmp_path / "nowhere")
    train_bpe([story(1)], 300).save(tmp_path / "t")
    train_bpe([story(2)], 300)._save_model(tmp_path / "t")
    with pytest.raises(DataError, match="fingerprint differs"):
        load_tokenizer(tmp_path / "t")


def test_integers() -> None:
    tokenizer = IntegerTokenizer(16)
    assert tokenizer.decode(tokenizer.encode("3 15 0")) == "3 15 0"
    assert tokenizer.token_bytes.sum() == 0
    for text in ("3 16", "x"):
        with pytest.raises(DataError):
            tokenizer.encode(text)


def test_words_keep_the_frequent_ones(tmp_path: Path) -> None:
    text = "The cat, the dog. The cat sat; the dog ran. A cat!"
    tokenizer = train_words([text], 9)
    assert [tokenizer.string(i).strip() for i in range(6)] == [b"", b"<unk>", b"the", b"cat", b".", b"dog"]
    assert tokenizer.vocab_size == 6
    assert tokenizer.encode("the CAT barked.") == [2, 3, 1, 4]
    assert tokenizer.decode([2, 3, 1, 4]) == "the cat <unk>."
    assert tokenizer.eot_id not in tokenizer.encode("<|endoftext|>")
    assert tokenizer.token_bytes.sum() == 0
    assert split_words("don't \u00c9t\u00e9_2") == ["don", "'", "t", "\u00e9t\u00e9_2"]
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.fingerprint == tokenizer.fingerprint and again.encode(text) == tokenizer.encode(text)
    assert train_words([text], 4).encode("the dog") == [2, 1]
    (tmp_path / "words.txt").write_text("the\n")
    with pytest.raises(DataError, match="fingerprint differs"):
        load_tokenizer(tmp_path)
    with pytest.raises(ConfigError, match="vocab_size=2 is too small"):
        train_words([text], 2)
