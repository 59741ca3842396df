from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bouton.data import TokenDataModule, TokenStore, sentences
from bouton.data.sentences import sentence_table
from bouton.errors import DataError

Make = Callable[..., TokenDataModule]

DOCUMENTS = [
    'Tim ran home. "Wait!" said Mia. He did not (he was late.) So he ran on',
    "Is it 3.14? It is.\n\nA new line begins here\nand here it goes on",
    "One",
]
BEGINNINGS = [
    ["Tim", '"Wait', "said Mia", "He did", "So he"],  # "Wait!" said: the rule of thumb takes it for a sentence
    ["Is it", "It is", "A new", "and here"],
    ["One"],
]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n<|endoftext|>\n".join(DOCUMENTS * 40), encoding="utf-8")
    return path


def opened(module: TokenDataModule) -> TokenStore:
    assert module.prepared.folder is not None
    return module.open_store(module.prepared.folder, "train")


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_sentences_begin_behind_the_end_of_others(kind: str, text: Path, make: Make) -> None:
    module = make(text, tokenizer={"kind": kind}, val_fraction=0.01)
    store = opened(module)
    table = sentence_table(store, module.tokenizer)
    assert np.isin(store.documents, table).all()
    assert (np.diff(table) > 0).all()
    ends = np.append(table[1:], len(store) - 1)
    found = [module.tokenizer.decode(store.tokens[a + 1 : b + 1]) for a, b in zip(table, ends, strict=True)]
    texts = [f.strip() for f in found]
    at = 0
    for document in range(90):  # the last ones are held out
        for words in BEGINNINGS[document % 3]:
            assert texts[at].startswith(words), (document, texts[at])
            at += 1


def test_the_table_does_not_depend_on_the_chunks(text: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    module = make(text, val_fraction=0.01)
    store = opened(module)
    whole = np.array(sentence_table(store, module.tokenizer))
    (store.folder / "sentences.bin").unlink()
    monkeypatch.setattr(sentences, "_CHUNK", 17)
    assert np.array_equal(sentence_table(store, module.tokenizer), whole)


def test_a_read_only_cache_and_a_corrupt_table(text: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    module = make(text, val_fraction=0.01)
    store = opened(module)
    whole = np.array(sentence_table(store, module.tokenizer))
    path = store.folder / "sentences.bin"
    for content, message in (
        (path.read_bytes()[:-3], "bytes are no table"),
        (b"", "0 bytes"),
        (bytes(8), "does not fit"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=message) as caught:
            sentence_table(store, module.tokenizer)
        assert "\n" not in str(caught.value)
    path.unlink()

    def refuse(*args: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(sentences, "write_atomically", refuse)
    assert np.array_equal(sentence_table(store, module.tokenizer), whole)
    assert not path.exists()
