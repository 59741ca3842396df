"""Conversations in token files: the tokens, where conversations begin, and where what is learned begins and ends.

The mask of what is learned is kept as ``spans.bin``, two int64 for each answer, so it costs a few bytes per
conversation whatever their length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bouton.data.chat import ChatTemplate, Conversation
from bouton.data.chat_source import ChatSource, num_bytes
from bouton.data.prepare import Writer, prepare_store
from bouton.data.store import DOCUMENTS, SPANS, TOKENS
from bouton.data.tokenizers import Tokenizer


def prepare_chat(source: ChatSource, tokenizer: Tokenizer, root: Path) -> Path:
    """The folder with one store per split ("train", "val", perhaps "test"), written now unless it is there.

    Raises:
        DataError: a split is empty, the disk is full, or the source cannot be read.
    """
    return prepare_store(source, tokenizer, root, ChatWriter)


class ChatWriter(Writer):
    """Writes conversations through the template of the tokenizer; journal and resuming are those of text."""

    form = "chat 1"
    names = (TOKENS, DOCUMENTS, SPANS)

    def __init__(self, source: Any, tokenizer: Tokenizer, folder: Path) -> None:
        super().__init__(source, tokenizer, folder)
        self._template = ChatTemplate(tokenizer)

    def _items(self) -> Iterator[tuple[str, Conversation]]:
        found: Iterator[tuple[str, Conversation]] = self._source.conversations()
        return found

    def _length(self, item: Conversation) -> int:
        return sum(len(message.text) for message in item)

    def _write(self, batch: Sequence[tuple[str, Conversation]]) -> int:
        total = 0
        encoded = self._template.encode_batch([conversation for _, conversation in batch])
        for (split, conversation), document in zip(batch, encoded, strict=True):
            tokens, documents, spans = self._open(split)
            counts = self._counts(split)
            documents.write(np.array([counts.tokens], dtype="<i8").tobytes())
            spans.write((document.spans + counts.tokens).astype("<i8").tobytes())
            tokens.write(document.tokens.astype(self._dtype).tobytes())
            counts.documents += 1
            counts.tokens += len(document.tokens)
            counts.spans += len(document.spans) // 2
            counts.bytes += (size := num_bytes(conversation))
            total += size
        return total
