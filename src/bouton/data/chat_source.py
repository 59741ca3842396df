"""Where conversations come from: local files or the hub, each conversation assigned to a split.

The splits are the source's own where it has them. Otherwise a conversation goes to one by a hash of all it holds before
the first answer, so that the same question with two answers never straddles them.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bouton.data.chat import Conversation, conversations_of, read_conversations
from bouton.data.documents import Piece, find_files
from bouton.data.hub import HubDataset
from bouton.data.sources import Survey, group_files, remembered, survey
from bouton.errors import DataError

_READER = 1  # version of what the reader makes of a row


class ChatSource:
    """Conversations that can be read from the start again and again, always the same.

    It is a :class:`bouton.data.sources.Source` too: its pieces are the text of the turns, for training a tokenizer.
    """

    def __init__(
        self,
        name: str,
        groups: Mapping[str, Callable[[], Iterator[Conversation]]],
        *,
        facts: dict[str, Any],
        val_fraction: float,
        max_bytes: int | None,
        total_bytes: int | None = None,
    ) -> None:
        """
        Args:
            groups: split -> reader, or {"all": reader} to be split by ``val_fraction``.
            facts: what identifies the text.
            max_bytes: read no more than that of each group, in whole conversations; None for all.
        """
        self.name = name
        self.total_bytes = total_bytes
        self._groups = dict(groups)
        self._val_fraction = val_fraction
        self._max_bytes = max_bytes
        own = "all" not in groups
        self.description = {
            "name": name,
            "split": "own files" if own else "prompt hash",
            "val_fraction": None if own else val_fraction,
            "max_bytes": max_bytes,
            "reader": _READER,
            **facts,
        }
        self.fingerprint = hashlib.sha256(json.dumps(self.description, sort_keys=True).encode()).hexdigest()

    def conversations(self) -> Iterator[tuple[str, Conversation]]:
        """(split, conversation) in an order that never changes."""
        for group, read in self._groups.items():
            for conversation in _capped(read(), self._max_bytes):
                yield (_split(conversation, self._val_fraction) if group == "all" else group), conversation

    def pieces(self) -> Iterator[tuple[str, Piece]]:
        """(split, (text of all turns, True)), conversation by conversation."""
        for split, conversation in self.conversations():
            yield split, ("\n".join(message.text for message in conversation), True)


def local_chat(
    name: str,
    path: str,
    cache_dir: Path,
    *,
    where: Mapping[str, Any] | None,
    max_bytes: int | None,
    val_fraction: float,
    prefix: str = "data",
) -> ChatSource:
    """The conversations of the file, folder or glob ``path``, which the node ``prefix`` of the configuration gives.

    Args:
        cache_dir: where the survey of unchanged files is remembered.
        where: column -> value that a row must have; None: all rows.

    Raises:
        DataError: there is no conversation, or a row has an unknown form.
    """
    field = f"{prefix}.path"
    groups = group_files(
        [file for file in find_files(path, field) if not Path(path).expanduser().is_dir() or _may_hold(file)]
    )
    if not any(groups.values()):
        raise DataError(f"{field}={path} holds no .jsonl, .json or .parquet files")
    readers = {
        group: functools.partial(read_conversations, files, where, f"{prefix}.where") for group, files in groups.items()
    }
    facts, total = {}, 0
    for group, files in groups.items():
        key = ["chat", _READER, dict(where or {})]
        found = remembered(files, key, cache_dir, functools.partial(_survey, readers[group]))
        if not found.documents:
            raise DataError(
                f"{field}={path} holds no conversation" + ("" if group == "all" else f" for the split '{group}'")
            )
        facts[group] = {"sha256": found.digest, "conversations": found.documents}
        total += found.num_bytes
    return ChatSource(
        name, readers, facts={"groups": facts}, val_fraction=val_fraction, max_bytes=max_bytes,
        total_bytes=total if max_bytes is None else None,
    )  # fmt: skip


def hub_chat(
    name: str, dataset: HubDataset, *, where: Mapping[str, Any] | None, max_bytes: int | None, val_fraction: float
) -> ChatSource:
    """A data set streamed from the hub. It is not hashed: a prepared copy must open without a network."""

    def reader(split: str) -> Callable[[], Iterator[Conversation]]:
        return lambda: conversations_of(dataset.rows(split), dataset.repository, where, f"{dataset.node}.where")

    own = "val" in dataset.splits
    groups = {split: reader(split) for split in dataset.splits} if own else {"all": reader("train")}
    facts = {"hub": dataset.facts(), "where": dict(where or {})}
    return ChatSource(name, groups, facts=facts, val_fraction=val_fraction, max_bytes=max_bytes, total_bytes=max_bytes)


def num_bytes(conversation: Conversation) -> int:
    """UTF-8 bytes of all turns."""
    return sum(len(message.text.encode("utf-8", errors="replace")) for message in conversation)


def _may_hold(path: Path) -> bool:
    """In a folder, files of other kinds (a README, a licence) are left out."""
    return path.name.removesuffix(".gz").endswith((".jsonl", ".ndjson", ".json", ".parquet"))


def _survey(read: Callable[[], Iterator[Conversation]]) -> Survey:
    return survey(_messages(read()))


def _messages(conversations: Iterator[Conversation]) -> Iterator[Piece]:
    for conversation in conversations:
        for index, message in enumerate(conversation):
            yield f"{message.role}\n{message.text}", index == 0


def _capped(conversations: Iterator[Conversation], max_bytes: int | None) -> Iterator[Conversation]:
    left = max_bytes
    for conversation in conversations:
        if left is not None:
            left -= num_bytes(conversation)
            if left < 0:
                return
        yield conversation


def _split(conversation: Conversation, val_fraction: float) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for message in conversation:
        if message.role == "assistant":
            break
        digest.update(f"{message.role}\n{message.text}\n".encode("utf-8", errors="replace"))
    return "val" if int.from_bytes(digest.digest(), "little") < val_fraction * 2.0**64 else "train"
