"""Text (or a synthetic task) to batches of tokens: one DataModule, one format of token files.

The public names are loaded on first use: reading a tokenizer does not need Lightning.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bouton.data.build import NAMES as NAMES
    from bouton.data.build import build_datamodule as build_datamodule
    from bouton.data.chat import ChatTemplate as ChatTemplate
    from bouton.data.chat import read_conversations as read_conversations
    from bouton.data.module import TokenDataModule as TokenDataModule
    from bouton.data.store import TokenStore as TokenStore
    from bouton.data.store import open_store as open_store
    from bouton.data.tokenizers import ByteTokenizer as ByteTokenizer
    from bouton.data.tokenizers import StreamDecoder as StreamDecoder
    from bouton.data.tokenizers import Tokenizer as Tokenizer
    from bouton.data.tokenizers import load_tokenizer as load_tokenizer
    from bouton.data.tokenizers import train_bpe as train_bpe

_PUBLIC = {
    "NAMES": "build",
    "ByteTokenizer": "tokenizers",
    "ChatTemplate": "chat",
    "StreamDecoder": "tokenizers",
    "TokenDataModule": "module",
    "TokenStore": "store",
    "Tokenizer": "tokenizers",
    "build_datamodule": "build",
    "load_tokenizer": "tokenizers",
    "open_store": "store",
    "read_conversations": "chat",
    "train_bpe": "tokenizers",
}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'bouton.data' has no attribute {name!r}")
    return getattr(importlib.import_module(f"bouton.data.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
