"""Labels of tokens against spans worked out by hand, and back."""

from __future__ import annotations

import numpy as np
import pytest

from bouton.data.pii.bio import Document, Span, decode_labels, label_names, label_tokens, text_spans, token_offsets
from bouton.data.pii.synthetic import TYPES, generate
from bouton.data.tokenizers import ByteTokenizer, Tokenizer, train_bpe

OUT, BP, IP, BD, ID = range(5)  # of the types P and D


def test_label_names() -> None:
    assert label_names(("P", "D")) == ("O", "B-P", "I-P", "B-D", "I-D")


@pytest.mark.parametrize(
    ("labels", "spans"),
    [
        ([], []),
        ([OUT, BP, IP, OUT], [(1, 3, "P")]),
        ([BP, BP, IP], [(0, 1, "P"), (1, 3, "P")]),
        ([BP, ID, ID], [(0, 1, "P"), (1, 3, "D")]),  # I of another type begins an entity
        ([OUT, IP, IP, BD], [(1, 3, "P"), (3, 4, "D")]),  # I without B
        ([IP, OUT, IP], [(0, 1, "P"), (2, 3, "P")]),
        ([ID, IP, BP], [(0, 1, "D"), (1, 2, "P"), (2, 3, "P")]),
    ],
)
def test_decode_labels(labels: list[int], spans: list[tuple[int, int, str]]) -> None:
    assert decode_labels(labels, ("P", "D")) == spans


def test_tokens_are_labelled_by_the_bytes_that_they_share_with_a_span() -> None:
    # Bytes: "é" has two. The span begins behind it, in the middle of the second token.
    document = Document("aé bcd e", (Span(3, 6, "D"), Span(7, 8, "P")))
    offsets = np.array([0, 3, 5, 7, 9])  # "aé" " b" "cd" " e"
    assert label_tokens(document, offsets, ("P", "D")).tolist() == [OUT, BD, ID, BP]
    assert label_tokens(document, offsets, ("D",)).tolist() == [OUT, 1, 2, OUT]  # other types are outside
    assert label_tokens(document, np.array([0, 3, 9]), ("P", "D")).tolist() == [OUT, BD]  # the first of two in a token
    assert text_spans(document.text, offsets, [Span(1, 3, "D"), Span(3, 4, "P")]) == [*document.spans]


def test_text_spans_drop_white_space() -> None:
    offsets = np.array([0, 2, 3, 6])
    assert text_spans("a  bc ", offsets, [Span(0, 3, "P")]) == [(0, 5, "P")]
    assert text_spans("a  bc ", offsets, [Span(1, 2, "P"), Span(2, 3, "P")]) == [(3, 5, "P")]


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_labels_give_the_spans_of_the_synthetic_texts_back(kind: str) -> None:
    documents = [*generate("train", 100, 0), *generate("test", 100, 0)]
    tokenizer: Tokenizer = ByteTokenizer() if kind == "bytes" else train_bpe([d.text for d in documents], 400)
    for document in documents:
        offsets = token_offsets(tokenizer, np.asarray(tokenizer.encode(document.text)))
        labels = label_tokens(document, offsets, TYPES)
        assert text_spans(document.text, offsets, decode_labels(labels.tolist(), TYPES)) == [*document.spans]
