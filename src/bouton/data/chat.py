"""Conversations: reading them in their usual forms, and writing them as tokens with a mask of what is learned.

For a data set of your own::

    template = ChatTemplate(tokenizer)
    for conversation in read_conversations(files):      # or conversations_of(rows) for rows of any origin
        encoded = template.encode(conversation)          # .tokens (N,) int64, .learned (N,) bool

``tokens`` begins with the tokenizer's ``eot_id``, as every document does. ``learned[n]`` says that the *target* n is
learned: a batch predicts ``tokens[1:]`` from ``tokens[:-1]`` and ignores the targets where ``learned[1:]`` is False.
Only what the assistant says is learned, and the token that ends its turn.

Where the tokenizer has the markers as special tokens (``train_bpe(..., specials=MARKERS)``), a turn is
``<|user|> text <|end|>``. Any other tokenizer writes the marker as text and ends the turn with its ``eot_id``, to which
no text encodes: a marker counts only behind that token, so what somebody types can never begin a turn. That includes
GPT-2's: its 50,257 ids stay as they are, since the embeddings of its checkpoints have no further rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bouton.data.documents import open_text
from bouton.data.tokenizers import Tokenizer
from bouton.errors import DataError, suggest

ROLES = ("system", "user", "assistant")
END = "<|end|>"
MARKERS = (*(f"<|{role}|>" for role in ROLES), END)

# The names that others give to the roles.
_ALIASES = {"human": "user", "prompter": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
_FORMS = (
    "messages [{role, content}], conversations [{from, value}], instruction with input and output, instruction with "
    "context and response, or messages and trees of OpenAssistant"
)


@dataclass(frozen=True)
class Message:
    """One turn. ``role`` is one of :data:`ROLES`; ``text`` has no white space at its ends."""

    role: str
    text: str


Conversation = tuple[Message, ...]


@dataclass(frozen=True)
class Encoded:
    """A conversation as tokens.

    Attributes:
        tokens: (N,) int64, beginning with ``eot_id``.
        learned: (N,) bool, whether this token is a target with a loss.
    """

    tokens: NDArray[np.int64]
    learned: NDArray[np.bool_]

    @property
    def spans(self) -> NDArray[np.int64]:
        """(2 S,) where learned stretches begin and end (exclusive), in turn."""
        edges = np.diff(self.learned.astype(np.int8), prepend=0, append=0)
        return np.flatnonzero(edges).astype(np.int64)


class ChatTemplate:
    """How turns are written for one tokenizer.

    Attributes:
        end_id: the token that ends every turn; a reply is over with it.
        special: whether the markers are special tokens.
        marker_ids: the ids of these special tokens; empty where the markers are text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """
        Raises:
            DataError: the tokenizer has no text.
        """
        if tokenizer.kind == "integers":
            raise DataError("a tokenizer of numbers cannot write conversations: use one of text (bytes, bpe, gpt2)")
        self._tokenizer = tokenizer
        ids = [tokenizer.special_id(marker) for marker in MARKERS]
        self.special = all(number is not None for number in ids)
        if self.special:
            self._headers = {role: [int(number or 0)] for role, number in zip(ROLES, ids, strict=False)}
            self.end_id = int(ids[-1] or 0)
            self.marker_ids = [int(number or 0) for number in ids]
        else:
            self._headers = {role: tokenizer.encode(f"<|{role}|>\n") for role in ROLES}
            self.end_id = tokenizer.eot_id
            self.marker_ids = []

    def header(self, role: str) -> list[int]:
        """The tokens that begin a turn; what follows those of the assistant is its reply."""
        return list(self._headers[role])

    def turn(self, message: Message) -> list[int]:
        """A whole turn: header, text, end."""
        return [*self._headers[message.role], *self._tokenizer.encode(message.text), self.end_id]

    def encode(self, conversation: Conversation) -> Encoded:
        """The conversation as a document of its own."""
        return self.encode_batch([conversation])[0]

    def encode_batch(self, conversations: Sequence[Conversation]) -> list[Encoded]:
        """The same for several, with one call of the tokenizer."""
        texts = iter(self._tokenizer.encode_batch([m.text for conversation in conversations for m in conversation]))
        return [self._joined([(message, next(texts)) for message in conversation]) for conversation in conversations]

    def _joined(self, turns: Iterable[tuple[Message, NDArray[np.int64]]]) -> Encoded:
        parts: list[Any] = [[self._tokenizer.eot_id]]
        learned: list[NDArray[np.bool_]] = [np.zeros(1, dtype=np.bool_)]
        for message, tokens in turns:
            header = self._headers[message.role]
            parts += [header, tokens, [self.end_id]]
            learned += [np.zeros(len(header), np.bool_), np.full(len(tokens) + 1, message.role == "assistant")]
        return Encoded(np.concatenate(parts).astype(np.int64), np.concatenate(learned))


# -- reading -----------------------------------------------------------------------------------------------------------


def read_conversations(
    files: Sequence[Path], where: Mapping[str, Any] | None = None, field: str = "data.where"
) -> Iterator[Conversation]:
    """The conversations of ``.jsonl``, ``.json`` (a list) and ``.parquet`` files, the first two also as ``.gz``.

    Args:
        where: column -> value that a row must have; None: all rows.
        field: where the configuration gives it, for error messages.

    Raises:
        DataError: a file cannot be read or has another form; the message names file and row.
    """
    for path in files:
        yield from conversations_of(_rows(path), str(path), where, field)


def conversations_of(
    rows: Iterable[Mapping[str, Any]],
    origin: str = "the data set",
    where: Mapping[str, Any] | None = None,
    field: str = "data.where",
) -> Iterator[Conversation]:
    """The conversations of rows in any of the known forms.

    Messages of OpenAssistant, one a row, are put together tree by tree: the rows of a tree follow one another. Of each
    tree the best-ranked reply is followed at every step. Turns without text are left out, and turns behind the last of
    the assistant; what then has no turn of the assistant is no conversation.

    Args:
        origin: where the rows come from, for error messages.
        where: column -> value that a row must have; None: all rows.
        field: where the configuration gives it, for error messages.
    """
    tree: list[Mapping[str, Any]] = []
    for number, row in enumerate(rows, 1):
        if where and not _chosen(row, where, field):
            continue
        if tree and not (_is_node(row) and _tree_of(row) == _tree_of(tree[0])):
            yield from _told(_best_path(_nested(tree)))
            tree = []
        try:
            if _is_node(row):
                tree.append(row)
            else:
                yield from _told(_messages(row))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{origin}, row {number}: {_reason(error, row)}") from None
    if tree:
        yield from _told(_best_path(_nested(tree)))


def _chosen(row: Mapping[str, Any], where: Mapping[str, Any], field: str) -> bool:
    if missing := [column for column in where if column not in row]:
        raise DataError(f"{field}.{missing[0]}: there is no such column; {suggest(missing[0], map(str, row))}")
    return all(row[column] == value for column, value in where.items())


def _messages(row: Mapping[str, Any]) -> list[Message]:
    """The turns of one row, whichever form it has."""
    if isinstance(turns := row.get("messages", row.get("conversations")), list):
        return [_message(t.get("role", t.get("from")), t.get("content", t.get("value"))) for t in turns]
    if "instruction" in row:
        asked = "\n\n".join(filter(None, (_text(row["instruction"]), _text(row.get("input", row.get("context"))))))
        answer = row["output"] if "output" in row else row["response"]
        return [Message("user", asked), Message("assistant", _text(answer))]
    if isinstance(prompt := row.get("prompt"), Mapping):
        return _best_path(prompt)
    raise KeyError("form")


def _message(role: Any, text: Any) -> Message:
    name = _ALIASES.get(str(role).lower(), str(role).lower())
    if name not in ROLES:
        raise ValueError(f"role '{role}' is unknown; {suggest(name, [*ROLES, *_ALIASES])}")
    return Message(name, _text(text))


def _text(value: Any) -> str:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"the text of a turn must be a string, not {type(value).__name__}")
    return (value or "").strip()


def _told(messages: list[Message]) -> Iterator[Conversation]:
    """The conversation that these turns make, if there is something to learn from it."""
    turns = [message for message in messages if message.text]
    while turns and turns[-1].role != "assistant":
        turns.pop()
    if turns:
        yield tuple(turns)


def _reason(error: Exception, row: Any) -> str:
    if isinstance(error, ValueError):
        return str(error)
    fields = ", ".join(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
    return f"no known form of a conversation (it has {fields}); known: {_FORMS}"


# -- OpenAssistant (Koepf et al. 2023): trees of replies ---------------------------------------------------------------


def _is_node(row: Mapping[str, Any]) -> bool:
    return "message_id" in row and "parent_id" in row and "text" in row


def _tree_of(row: Mapping[str, Any]) -> Any:
    return row.get("message_tree_id", row["message_id"] if row["parent_id"] is None else None)


def _nested(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The rows of one tree as its root, with ``replies``."""
    nodes: dict[Any, dict[str, Any]] = {row["message_id"]: {**row, "replies": []} for row in rows}
    root: dict[str, Any] = {}
    for node in nodes.values():
        if node["parent_id"] is None:
            root = node
        elif node["parent_id"] in nodes:
            nodes[node["parent_id"]]["replies"].append(node)
    return root


def _best_path(root: Mapping[str, Any]) -> list[Message]:
    path, node = [], root
    while node:
        path.append(_message(node["role"], node["text"]))
        replies = [reply for reply in node.get("replies") or [] if not reply.get("deleted")]
        node = min(replies, key=_rank, default={})
    return path


def _rank(reply: Mapping[str, Any]) -> float:
    rank = reply.get("rank")
    return float("inf") if rank is None else float(rank)  # 0 is the best; without a rank the first counts


# -- files -------------------------------------------------------------------------------------------------------------


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    name = path.name.removesuffix(".gz")
    try:
        if name.endswith(".parquet"):
            yield from _parquet_rows(path)
        elif name.endswith(".json"):
            with open_text(path) as file:
                yield from _whole(path, file.read())
        else:
            with open_text(path) as file:
                yield from _json_lines(path, file)
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _json_lines(path: Path, lines: Iterable[str]) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: not a JSON object; a file of conversations has one on each line")
        yield row


def _whole(path: Path, text: str) -> Iterator[Mapping[str, Any]]:
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    if not isinstance(content, list):
        raise DataError(f"{path} is not a list of conversations: write one JSON object a line, into a .jsonl file")
    yield from content


def _parquet_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    from pyarrow import ArrowInvalid  # type: ignore[import-untyped]
    from pyarrow.parquet import ParquetFile  # type: ignore[import-untyped]

    try:
        for batch in ParquetFile(path).iter_batches(batch_size=256):
            yield from batch.to_pylist()
    except ArrowInvalid as error:
        raise DataError(f"{path} is not a parquet file: {str(error).splitlines()[0]}") from error
