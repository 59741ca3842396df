"""The exported tokenizer encodes and decodes as the run's own."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="the extra hub is not installed")

import transformers

import bouton
from bouton.hub import fast_tokenizer, save_pretrained

TEXTS = ("a story about Zoë", "", "  two  spaces\n\nand lines\t!", "<|endoftext|> is text", "数字 и ☃", "\x00\x07")


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_texts_are_encoded_as_in_training(make_run: Any, tmp_path: Path, kind: str) -> None:
    run = bouton.load(make_run(kind), device="cpu")
    save_pretrained(run, tmp_path / "exported")
    loaded = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / "exported")
    own = run.tokenizer
    for tokenizer in (loaded, fast_tokenizer(own)):
        assert len(tokenizer) == own.vocab_size
        assert tokenizer.eos_token_id == tokenizer.bos_token_id == own.eot_id
        for text in TEXTS:
            ids = tokenizer(text)["input_ids"]
            assert ids == [own.eot_id, *own.encode(text)], text
            assert tokenizer.decode(ids[1:]) == text
            assert tokenizer(text, add_special_tokens=False)["input_ids"] == own.encode(text)
        assert tokenizer.decode([own.eot_id], skip_special_tokens=True) == ""


def test_numbers_are_taken_as_they_are(make_run: Any, tmp_path: Path) -> None:
    run = bouton.load(make_run("integers"), device="cpu")
    save_pretrained(run, tmp_path / "exported")
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "exported")
    assert loaded("3 1 39 0")["input_ids"] == [3, 1, 39, 0]
    assert loaded.decode([3, 1, 39]) == "3 1 39"
