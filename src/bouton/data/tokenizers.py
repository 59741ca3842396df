"""Tokenizers: bytes, byte-level BPE (trained here or loaded), GPT-2's, words, and integers for synthetic tasks.

All but words are lossless maps between text and byte strings, so every token stands for a known number of bytes
(``token_bytes``) and a loss in nats per token becomes bits per byte, which compares across tokenizers.

A document on disk begins with ``eot_id``: it is both the end of the text before it and the token from which the first
word is predicted. Text never encodes to ``eot_id``, also where it contains the characters ``<|endoftext|>``.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bouton.data.disk import disk_errors
from bouton.errors import ConfigError, DataError, suggest
from bouton.files import write_text

END_OF_TEXT = "<|endoftext|>"
KINDS = ("bytes", "bpe", "gpt2", "words")
GPT2_REPOSITORY = "openai-community/gpt2"
SMALLEST_BPE = 257  # 256 bytes and the end of text

_META = "bouton_tokenizer.json"
_JSON = "tokenizer.json"
_WORDS = "words.txt"
_WORD = re.compile(r"\w+|[^\w\s]")
UNKNOWN = "<unk>"
SMALLEST_WORDS = 3


class Tokenizer(ABC):
    """Text to token ids and back.

    Attributes:
        kind: "bytes", "bpe", "gpt2", "words" or "integers".
        vocab_size: number of ids; all ids are below it.
        eot_id: the id that begins every document and ends a generated text.
        token_bytes: (vocab_size,) int64, bytes of text that each token stands for; 0 for specials.
        fingerprint: hash of everything that decides how text is encoded.
    """

    kind: str
    eot_id: int
    fingerprint: str

    def __init__(self, strings: Sequence[bytes]) -> None:
        self._strings = list(strings)  # what each id stands for; b"" for specials

    @property
    def vocab_size(self) -> int:
        return len(self._strings)

    @cached_property
    def token_bytes(self) -> NDArray[np.int64]:
        return np.array([len(string) for string in self._strings], dtype=np.int64)

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The ids of ``text``, without ``eot_id``."""

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        """One id array per text; the same ids as :meth:`encode`."""
        return [np.asarray(self.encode(text), dtype=np.int64) for text in texts]

    def string(self, token: int) -> bytes:
        """The bytes of one token; an id outside the vocabulary (a padded output layer) gives the replacement sign."""
        if 0 <= token < len(self._strings):
            return self._strings[token]
        return "\N{REPLACEMENT CHARACTER}".encode()

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of ``tokens``; bytes that are not UTF-8 become replacement signs."""
        return b"".join(self.string(int(token)) for token in tokens).decode("utf-8", errors="replace")

    def special_id(self, text: str) -> int | None:
        """The id of the special token that is written so, to which no text encodes; None: there is none."""
        return self.eot_id if text == END_OF_TEXT else None

    def save(self, folder: str | Path) -> None:
        """Write everything :func:`load_tokenizer` needs into ``folder``."""
        folder = Path(folder)
        with disk_errors(folder, "the tokenizer"):
            folder.mkdir(parents=True, exist_ok=True)
            self._save_model(folder)
            meta = {"kind": self.kind, "vocab_size": self.vocab_size, "eot_id": self.eot_id,
                    "fingerprint": self.fingerprint}  # fmt: skip
            write_text(folder / _META, json.dumps(meta, indent=2) + "\n")

    def _save_model(self, folder: Path) -> None:  # noqa: B027 (only BPE has more to write)
        """Write what the kind and the vocabulary size do not tell."""


class ByteTokenizer(Tokenizer):
    """UTF-8 bytes as they are (ids 0 to 255) and the end of text (256)."""

    kind = "bytes"
    eot_id = 256
    fingerprint = hashlib.sha256(b"bytes 1").hexdigest()

    def __init__(self) -> None:
        super().__init__([*(bytes([i]) for i in range(256)), b""])

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8", errors="replace"))

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        return [np.frombuffer(t.encode("utf-8", errors="replace"), np.uint8).astype(np.int64) for t in texts]


class IntegerTokenizer(Tokenizer):
    """Token ids written as decimal numbers with spaces between, for tasks that have no text (``mqar``)."""

    kind = "integers"
    eot_id = 0

    def __init__(self, vocab_size: int) -> None:
        super().__init__([b""] * vocab_size)
        self.fingerprint = hashlib.sha256(f"integers {vocab_size}".encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        try:
            tokens = [int(word) for word in text.split()]
        except ValueError:
            raise DataError(f"this model reads numbers, not text: give ids with spaces between, not {text!r}") from None
        if any(not 0 <= token < self.vocab_size for token in tokens):
            raise DataError(f"token ids must lie between 0 and {self.vocab_size - 1}, got {text!r}")
        return tokens

    def string(self, token: int) -> bytes:
        return f"{token} ".encode()

    def decode(self, tokens: Iterable[int]) -> str:
        return " ".join(str(int(token)) for token in tokens)


class WordTokenizer(Tokenizer):
    """Words and signs in lower case, one id each, and one id for all that are not in the vocabulary.

    Not lossless: letters become small, spaces are gone, unknown words too. A token therefore stands for no number of
    bytes, and a loss has no bits per byte; perplexities compare at the same vocabulary alone.

    Args:
        words: the vocabulary, without the two special tokens; the ids are those of ``<|endoftext|>`` (0), of unknown
            words (1), and then theirs in order.
    """

    kind = "words"
    eot_id = 0
    unknown_id = 1

    def __init__(self, words: Sequence[str]) -> None:
        super().__init__([b"", UNKNOWN.encode(), *(word.encode() for word in words)])
        self._ids = {word: i for i, word in enumerate(words, start=2)}
        self.fingerprint = hashlib.sha256(json.dumps(["words", 1, list(words)]).encode()).hexdigest()

    @cached_property
    def token_bytes(self) -> NDArray[np.int64]:
        return np.zeros(self.vocab_size, dtype=np.int64)

    def encode(self, text: str) -> list[int]:
        return [self._ids.get(word, self.unknown_id) for word in split_words(text)]

    def string(self, token: int) -> bytes:
        word = super().string(token)
        first = word.decode()[:1]
        return b" " + word if first.isalnum() or first in ("_", "<") else word

    def decode(self, tokens: Iterable[int]) -> str:
        return super().decode(tokens).removeprefix(" ")

    def _save_model(self, folder: Path) -> None:
        write_text(folder / _WORDS, "\n".join(self._ids) + "\n")


def split_words(text: str) -> list[str]:
    """Runs of letters, digits and underscores, and every other sign but space by itself, in lower case."""
    return _WORD.findall(_clean(text).lower())


def train_words(texts: Iterable[str], vocab_size: int) -> WordTokenizer:
    """The most frequent words of the texts that occur twice or more, at most ``vocab_size`` - 2; ties by the alphabet.

    Raises:
        ConfigError: a vocabulary with room for no word.
    """
    if vocab_size < SMALLEST_WORDS:
        raise ConfigError(
            f"data.tokenizer.vocab_size={vocab_size} is too small: words need at least {SMALLEST_WORDS} "
            "(the end of text, unknown words, a word)"
        )
    counts = Counter(word for text in texts for word in split_words(text))
    frequent = sorted((word for word, n in counts.items() if n > 1), key=lambda word: (-counts[word], word))
    return WordTokenizer(frequent[: vocab_size - 2])


class BPETokenizer(Tokenizer):
    """Byte-level byte-pair encoding (Sennrich et al. 2016; Radford et al. 2019) by the ``tokenizers`` library."""

    def __init__(self, model: Any, kind: str = "bpe", origin: str = "the tokenizer") -> None:
        """
        Args:
            model: a ``tokenizers.Tokenizer`` with a byte-level pre-tokenizer and the token ``<|endoftext|>``.
            kind: "bpe" or "gpt2".
            origin: where it comes from, for error messages.
        """
        definition = json.loads(model.to_str())
        if definition["model"]["type"] != "BPE" or (definition.get("decoder") or {}).get("type") != "ByteLevel":
            raise DataError(f"{origin} is not a byte-level BPE tokenizer; valid: one as GPT-2's, or one trained here")
        eot_id = model.token_to_id(END_OF_TEXT)
        if eot_id is None:
            raise DataError(f"{origin} has no token {END_OF_TEXT}, which separates the documents")
        model.encode_special_tokens = True  # the characters <|endoftext|> in a text are text
        self.kind = kind
        self.eot_id = int(eot_id)
        self._model = model
        self._specials = {t["content"]: int(t["id"]) for t in definition["added_tokens"] if t["special"]}
        specials = set(self._specials.values())
        alphabet = byte_alphabet()
        strings = []
        for token in range(max(model.get_vocab(with_added_tokens=True).values()) + 1):
            text = model.id_to_token(token)
            if text is None or token in specials:
                strings.append(b"")
            else:
                strings.append(b"".join(alphabet.get(char) or char.encode() for char in text))
        super().__init__(strings)
        parts = [definition["model"]["vocab"], definition["model"]["merges"], definition["pre_tokenizer"],
                 definition["normalizer"], sorted(specials)]  # fmt: skip
        self.fingerprint = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        return list(self._model.encode(_clean(text), add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        encodings = self._model.encode_batch_fast([_clean(text) for text in texts], add_special_tokens=False)
        return [np.asarray(encoding.ids, dtype=np.int64) for encoding in encodings]

    def special_id(self, text: str) -> int | None:
        return self._specials.get(text)

    def _save_model(self, folder: Path) -> None:
        write_text(folder / _JSON, self._model.to_str())


def _clean(text: str) -> str:
    """``text`` without lone surrogates, which a terminal or a JSON file can smuggle in and UTF-8 cannot hold."""
    return text if text.isascii() else text.encode("utf-8", errors="replace").decode("utf-8")


def byte_alphabet() -> dict[str, bytes]:
    """The printable character by which byte-level BPE writes each byte: itself if printable, else from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    table = {chr(byte): bytes([byte]) for byte in printable}
    return table | {chr(256 + n): bytes([byte]) for n, byte in enumerate(others)}


def train_bpe(texts: Iterable[str], vocab_size: int, specials: Sequence[str] = ()) -> BPETokenizer:
    """Train byte-level BPE of at most ``vocab_size`` ids (fewer where the text has too few pairs) in one pass.

    Args:
        specials: special tokens besides the end of the text; the vocabulary contains them.
    """
    from tokenizers import Tokenizer as Model
    from tokenizers import decoders, models, pre_tokenizers, trainers

    if vocab_size < SMALLEST_BPE + len(specials):
        raise ConfigError(
            f"data.tokenizer.vocab_size={vocab_size} is too small: byte-level BPE needs at least "
            f"{SMALLEST_BPE + len(specials)} (256 bytes, the end of text" + (", markers)" if specials else ")")
        )
    model = Model(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, *specials],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(map(_clean, texts), trainer)
    return BPETokenizer(model)


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer that :meth:`Tokenizer.save` wrote into ``folder``."""
    folder = Path(folder)
    try:
        meta = json.loads((folder / _META).read_text())
        kind, fingerprint = meta["kind"], meta["fingerprint"]
    except FileNotFoundError:
        raise DataError(f"no tokenizer at {folder}: {_META} is missing") from None
    except (ValueError, KeyError, TypeError):
        raise DataError(f"the tokenizer at {folder} is corrupt: {_META} cannot be read") from None
    tokenizer: Tokenizer
    if kind == "bytes":
        tokenizer = ByteTokenizer()
    elif kind == "integers":
        tokenizer = IntegerTokenizer(int(meta["vocab_size"]))
    elif kind in ("bpe", "gpt2"):
        tokenizer = load_bpe(folder / _JSON, kind)
    elif kind == "words":
        try:
            tokenizer = WordTokenizer((folder / _WORDS).read_text().splitlines())
        except (OSError, UnicodeDecodeError):
            raise DataError(f"the tokenizer at {folder} is corrupt: {_WORDS} cannot be read") from None
    else:
        raise DataError(f"the tokenizer at {folder} is of the unknown kind '{kind}'; {suggest(kind, KINDS)}")
    if tokenizer.fingerprint != fingerprint:
        raise DataError(f"the tokenizer at {folder} is corrupt: its fingerprint differs from the one in {_META}")
    return tokenizer


def load_bpe(path: str | Path, kind: str = "bpe") -> BPETokenizer:
    """A tokenizer from a ``tokenizer.json``, a folder with it, or a folder with ``vocab.json`` and ``merges.txt``."""
    from tokenizers import Tokenizer as Model
    from tokenizers import decoders, models, pre_tokenizers

    path = Path(path).expanduser()
    vocab, merges = path / "vocab.json", path / "merges.txt"
    try:
        if path.is_dir() and not (path / _JSON).is_file() and vocab.is_file() and merges.is_file():
            model = Model(models.BPE.from_file(str(vocab), str(merges)))
            model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
            model.decoder = decoders.ByteLevel()
            model.add_special_tokens([END_OF_TEXT])
        else:
            file = path / _JSON if path.is_dir() else path
            if not file.is_file():
                raise DataError(
                    f"data.tokenizer.path={path}: no such tokenizer; "
                    "valid: a tokenizer.json, a folder with it, or a folder with vocab.json and merges.txt"
                )
            model = Model.from_file(str(file))
    except DataError:
        raise
    except Exception as error:  # the library raises bare Exceptions
        raise DataError(f"the tokenizer at {path} cannot be read: {str(error).splitlines()[0]}") from error
    return BPETokenizer(model, kind, f"the tokenizer at {path}")


def load_gpt2(path: str | Path | None = None) -> BPETokenizer:
    """GPT-2's tokenizer (50,257 ids): from ``path``, else from the Hugging Face cache, else from the hub."""
    if path is not None:
        return load_bpe(path, "gpt2")
    from bouton.data.hub import fetch_file

    file = fetch_file(GPT2_REPOSITORY, _JSON, "data.tokenizer.path=<folder with tokenizer.json>")
    return load_bpe(file, "gpt2")


class StreamDecoder:
    """Text from tokens as they arrive: incomplete UTF-8 is held back until the rest of the character comes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """The text that is certain after this token; may be empty."""
        return self._decoder.decode(self._tokenizer.string(int(token)))

    def flush(self) -> str:
        """The rest at the end of the stream."""
        return self._decoder.decode(b"", final=True)
