"""Text (or a synthetic task) to batches of tokens: one DataModule, one format of token files."""

from __future__ import annotations

from bouton.data.build import NAMES, build_datamodule
from bouton.data.module import TokenDataModule
from bouton.data.store import TokenStore, open_store
from bouton.data.tokenizers import ByteTokenizer, StreamDecoder, Tokenizer, load_tokenizer, train_bpe

__all__ = [
    "NAMES",
    "ByteTokenizer",
    "StreamDecoder",
    "TokenDataModule",
    "TokenStore",
    "Tokenizer",
    "build_datamodule",
    "load_tokenizer",
    "open_store",
    "train_bpe",
]
