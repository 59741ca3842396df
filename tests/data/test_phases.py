from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bouton.data import ByteTokenizer, TokenDataModule, TokenStore
from bouton.data.phases import BLOCK, Part, Phase, PhaseRows, phase_parts, pieces_of_store, shares
from bouton.data.sentences import sentence_table
from bouton.errors import DataError

Make = Callable[..., TokenDataModule]


class Numbers:
    """A text whose piece i reads ``first + i`` at every place."""

    def __init__(self, first: int, count: int, length: int) -> None:
        self.first, self.count, self.length = first, count, length

    def __len__(self) -> int:
        return self.count

    def gather(self, index: NDArray[np.int64]) -> Any:
        tokens = np.broadcast_to((self.first + index)[..., None], (*index.shape, self.length + 1)).copy()
        return tokens, np.zeros((*index.shape, self.length), dtype=np.bool_)


def stream(*seed: int) -> PhaseRows:
    """Three quarters of 50 pieces of 4 tokens, a quarter of 30 pieces of 2; rows of 8."""
    return PhaseRows([Part(Numbers(0, 50, 4), 4, 750), Part(Numbers(1000, 30, 2), 2, 250)], 8, *seed)


def test_every_thousand_rows_have_the_exact_proportions() -> None:
    for block in range(3):
        tokens = stream(0, 1).gather(np.arange(block * BLOCK, (block + 1) * BLOCK))["tokens"]
        assert int((tokens[:, 0] >= 1000).sum()) == 250
    early = stream(0, 1).gather(np.arange(100))["tokens"][:, 0] >= 1000
    assert 10 < int(early.sum()) < 45  # mixed, not one after the other


def test_every_epoch_of_a_text_visits_every_piece_once() -> None:
    whole = stream(0, 1).gather(np.arange(BLOCK))["tokens"]
    first = whole[whole[:, 0] < 1000][:, ::4].reshape(-1)
    assert Counter(first.tolist()) == Counter(dict.fromkeys(range(50), 30))  # 750 rows of 2 pieces: 30 epochs of 50
    second = whole[whole[:, 0] >= 1000][:, ::2].reshape(-1) - 1000
    counts = Counter(second.tolist())  # 250 rows of 4 pieces: 33 epochs of 30, and ten pieces more
    assert set(counts.values()) == {33, 34} and sum(counts.values()) == 1000


def test_a_row_is_a_function_of_seed_and_sample_alone() -> None:
    samples = np.array([5, 70, 3, -1, 2999])
    batch = stream(4, 2).gather(samples)
    for slot, sample in enumerate(samples):
        alone = stream(4, 2).gather(np.array([sample]))
        assert all((alone[name][0] == batch[name][slot]).all() for name in batch)
    assert (batch["targets"][3] == -100).all() and (batch["targets"][[0, 1, 2, 4]] != -100).all()
    for other in ((5, 2), (4, 3)):
        assert (stream(*other).gather(np.arange(50))["tokens"] != stream(4, 2).gather(np.arange(50))["tokens"]).any()


def test_pieces_begin_fresh() -> None:
    batch = stream(0, 0).gather(np.arange(200))
    long = batch["tokens"][:, 0] < 1000
    for rows, length in ((long, 4), (~long, 2)):
        expected = np.arange(8) % length == 0
        assert (batch["starts"][rows].numpy() == expected).all()


@pytest.fixture
def store(corpus: Path, make: Make) -> tuple[TokenStore, Any]:
    module = make(corpus)
    assert module.prepared.folder is not None
    return module.open_store(module.prepared.folder, "train"), module.tokenizer


def test_pieces_end_to_end_are_the_text(store: tuple[TokenStore, Any]) -> None:
    tokens, tokenizer = store
    pieces = pieces_of_store(tokens, Phase("p", 10, "anywhere", {}), tokenizer, "s")
    found, starts = pieces.gather(np.arange(len(pieces)))
    assert np.array_equal(found[:, :-1].reshape(-1), tokens.tokens[: len(pieces) * 10])
    assert np.array_equal(found[:-1, -1], found[1:, 0])
    documents = tokens.documents[tokens.documents < len(pieces) * 10]
    assert np.array_equal(np.flatnonzero(starts.reshape(-1)), documents)


def test_pieces_from_sentences_read_like_documents(store: tuple[TokenStore, Any]) -> None:
    tokens, tokenizer = store
    pieces = pieces_of_store(tokens, Phase("p", 12, "sentence", {}), tokenizer, "s")
    table = sentence_table(tokens, tokenizer)
    assert len(tokens) - 13 - table[len(pieces) - 1] >= 0 and len(pieces) >= len(table) - 2
    found, starts = pieces.gather(np.arange(len(pieces)).reshape(-1, 1))
    assert found.shape == (len(pieces), 1, 13) and starts.shape == (len(pieces), 1, 12)
    assert (found[:, 0, 0] == tokenizer.eot_id).all() and starts[:, 0, 0].all()
    for piece, place in enumerate(table[: len(pieces)]):
        assert np.array_equal(found[piece, 0, 1:], tokens.tokens[place + 1 : place + 13])


def test_a_text_shorter_than_a_piece(store: tuple[TokenStore, Any]) -> None:
    tokens, tokenizer = store
    for begin in ("sentence", "anywhere"):
        with pytest.raises(DataError, match=r"data\.phases\.long: no piece of 9999999 tokens .* source tales"):
            pieces_of_store(tokens, Phase("long", 9_999_999, begin, {}), tokenizer, "tales")


@pytest.mark.parametrize(
    ("weights", "expected"),
    [([1, 1, 1], [334, 333, 333]), ([3, 1], [750, 250]), ([1], [1000]), ([0.5, 0, 0.5], [500, 0, 500])],
)
def test_shares(weights: list[float], expected: list[int]) -> None:
    assert shares(weights, 1000) == expected


def test_small_shares_are_not_lost() -> None:
    counts = shares([1000.0] + [0.01] * 20, 1000)
    assert counts == [980] + [1] * 20


def test_replay_repeats_the_earlier_phases_equally() -> None:
    a, b = Phase("a", 8, "anywhere", {"x": 1}), Phase("b", 16, "anywhere", {"x": 1, "y": 3})
    c = Phase("c", 32, "anywhere", {"y": 1})
    assert phase_parts([a, b, c], 0, 0.25) == [(a, "x", 1000)]
    assert phase_parts([a, b, c], 1, 0.2) == [(b, "x", 200), (b, "y", 600), (a, "x", 200)]
    assert phase_parts([a, b, c], 2, 0.2) == [(c, "y", 800), (a, "x", 100), (b, "x", 25), (b, "y", 75)]
    assert phase_parts([a, b, c], 2, 0.0) == [(c, "y", 1000)]


@pytest.mark.parametrize("begin", ["anywhere", "sentence"])
def test_an_end_inside_a_document_begins_none(begin: str, tmp_path: Path) -> None:
    """Turns of a conversation may end with ``eot_id``: state must survive that."""
    eot = ByteTokenizer.eot_id
    tokens = np.array([eot, *b"Hi.", eot, *b"Yes. So", eot, *b"Two", eot, eot, *b"End"], dtype=np.uint16)
    documents = np.array([0, 16], dtype=np.int64)
    store = TokenStore(tmp_path, tokens, documents, 0, {})
    pieces = pieces_of_store(store, Phase("p", 4, begin, {}), ByteTokenizer(), "s")
    found, starts = pieces.gather(np.arange(len(pieces)))
    if begin == "anywhere":
        assert np.flatnonzero(starts.reshape(-1)).tolist() == [0, 16]
    else:
        assert (found[:, 0] == eot).all() and starts[:, 0].all() and not starts[:-1, 1:].any()
