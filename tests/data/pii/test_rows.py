from __future__ import annotations

import numpy as np
import pytest
import torch

from bouton.data.pii.bio import Document, Span
from bouton.data.pii.rows import LabelledRows
from bouton.data.tokenizers import ByteTokenizer
from bouton.errors import ConfigError

EOT, X = 256, -100


def rows(text: str, *spans: tuple[int, int, str], seq_len: int, delay: int) -> tuple[list[list[int]], list[list[int]]]:
    made = LabelledRows(
        [Document(text, tuple(Span(*s) for s in spans))], ByteTokenizer(), ("P",), seq_len=seq_len, delay=delay
    )
    batch = made.gather(np.arange(len(made)))
    assert batch["starts"].tolist() == [[True] + [False] * (seq_len - 1)] * len(made)
    return batch["tokens"].tolist(), batch["targets"].tolist()


def test_a_label_is_read_as_many_tokens_later_as_the_delay_says() -> None:
    assert rows("a bc", (2, 4, "P"), seq_len=8, delay=0) == (
        [[EOT, 97, 32, 98, 99, EOT, EOT, EOT]], [[X, 0, 0, 1, 2, X, X, X]],
    )  # fmt: skip
    assert rows("a bc", (2, 4, "P"), seq_len=8, delay=2) == (
        [[EOT, 97, 32, 98, 99, EOT, EOT, EOT]], [[X, X, X, 0, 0, 1, 2, X]],
    )  # fmt: skip


def test_a_long_text_is_cut_before_an_entity_unless_that_is_too_long_itself() -> None:
    assert rows("ab cd", (3, 5, "P"), seq_len=5, delay=0)[1] == [[X, 0, 0, 0, X], [X, 1, 2, X, X]]
    assert rows("abcdef", (1, 6, "P"), seq_len=5, delay=0)[1] == [[X, 0, X, X, X], [X, 1, 2, 2, 2], [X, 2, X, X, X]]


def test_a_row_of_minus_one_is_ignored() -> None:
    made = LabelledRows([Document("ab", ())], ByteTokenizer(), ("P",), seq_len=4, delay=1)
    batch = made.gather(np.array([-1, 0]))
    assert (batch["targets"][0] == X).all() and (batch["tokens"][0] == EOT).all()
    assert torch.equal(batch["targets"][1], torch.tensor([X, X, 0, 0]))


def test_a_row_needs_room() -> None:
    with pytest.raises(ConfigError, match=r"data\.seq_len=3 is too short.*data\.delay \+ 1 = 3"):
        LabelledRows([Document("a", ())], ByteTokenizer(), ("P",), seq_len=3, delay=2)
