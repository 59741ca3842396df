"""Rows of labelled texts: one text in a row, the label of each token read ``delay`` tokens after it.

    tokens    eot  Mr  Ada Lovelace  eot  eot         (delay 2; the last eot are filling)
    targets    -   -    -     O       B    I

A body is causal: at "Ada" it has not seen what follows. The delay gives it that many tokens of the right context, and
costs as many steps at the end of a text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from bouton.data.packing import IGNORED, Batch
from bouton.data.pii.bio import Document, label_tokens, token_offsets
from bouton.data.tokenizers import Tokenizer
from bouton.errors import ConfigError

Ints = NDArray[np.int64]


class LabelledRows:
    """The rows of some documents.

    Attributes:
        documents: what they were made from, for measures on characters.
    """

    def __init__(
        self, documents: Sequence[Document], tokenizer: Tokenizer, types: Sequence[str], *, seq_len: int, delay: int
    ) -> None:
        """
        Args:
            seq_len: tokens of a row; longer texts go on in further rows, with fresh state.
            delay: tokens between a token and the place where its label is read.

        Raises:
            ConfigError: a row has no room for a text.
        """
        room = seq_len - 1 - delay
        if room < 1:
            raise ConfigError(
                f"data.seq_len={seq_len} is too short: it must be larger than data.delay + 1 = {delay + 1}"
            )
        self.seq_len = seq_len
        self.documents = tuple(documents)
        tokens = tokenizer.encode_batch([document.text for document in documents])
        pieces = [
            piece
            for document, ids in zip(documents, tokens, strict=True)
            for piece in _pieces(ids, label_tokens(document, token_offsets(tokenizer, ids), types), room)
        ]
        self._eot = tokenizer.eot_id
        self.tokens = np.full((len(pieces), seq_len), self._eot, dtype=np.int64)
        self.targets = np.full((len(pieces), seq_len), IGNORED, dtype=np.int64)
        for row, (ids, labels) in enumerate(pieces):
            self.tokens[row, 1 : 1 + len(ids)] = ids
            self.targets[row, 1 + delay : 1 + delay + len(ids)] = labels

    def __len__(self) -> int:
        return len(self.tokens)

    def gather(self, rows: Ints) -> Batch:
        """The batch of these rows; a row number of -1 gives a filler, whose targets are all ignored."""
        tokens, targets = self.tokens[rows].copy(), self.targets[rows].copy()
        tokens[rows < 0], targets[rows < 0] = self._eot, IGNORED
        starts = np.zeros(tokens.shape, dtype=np.bool_)
        starts[:, 0] = True
        return {
            "tokens": torch.from_numpy(tokens),
            "targets": torch.from_numpy(targets),
            "starts": torch.from_numpy(starts),
        }


def _pieces(tokens: Ints, labels: Ints, room: int) -> Iterator[tuple[Ints, Ints]]:
    """Cut a text so that each piece has at most ``room`` tokens, in an entity only where it is longer than that."""
    begin = 0
    while begin < len(tokens):
        end = min(begin + room, len(tokens))
        if end < len(tokens):
            cut = end
            while cut > begin and labels[cut] > 0 and labels[cut] % 2 == 0:  # the next piece may not begin with I
                cut -= 1
            end = cut if cut > begin else end
        yield tokens[begin:end], labels[begin:end]
        begin = end
