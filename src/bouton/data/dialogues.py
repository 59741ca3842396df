"""Rows of instruction and conversation sets as documents: one text a conversation, with role markers in plain text.

Three forms are told apart by their columns:

    messages                                     [{"role": "user", "content": ...}, ...]
    instruction, input or context, output or response      Alpaca (Taori et al. 2023), Dolly (Conover et al. 2023)
    message_id, parent_id, message_tree_id, role, text     OpenAssistant (Koepf et al. 2023): trees of replies, of which
                                                 the path of the best-ranked replies is read
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from bouton.errors import DataError

Row = Mapping[str, Any]
Messages = list[tuple[str, str]]  # (role, content): system, user, assistant

_ROLES = {"prompter": "user", "human": "user", "gpt": "assistant"}
_TREE = ("message_id", "parent_id", "message_tree_id", "role", "text")


def dialogue_texts(rows: Iterable[Row], language: str | None = None) -> Iterator[str]:
    """The conversations of ``rows`` as texts, in their order.

    Args:
        language: keep message trees of that language (column ``lang``); None: all.

    Raises:
        DataError: the columns are none of the known forms.
    """
    number = itertools.count()  # a row of no tree stands alone
    for _, group in itertools.groupby(rows, key=lambda row: row.get("message_tree_id") or next(number)):
        first, *rest = group
        messages = _path([first, *rest], language) if "message_tree_id" in first else _messages(first)
        if messages:
            yield "".join(f"<|{role}|>\n{content.strip()}\n<|/{role}|>\n" for role, content in messages)


def _messages(row: Row) -> Messages:
    if isinstance(row.get("messages"), list):
        return [(_role(message["role"]), str(message["content"])) for message in row["messages"]]
    answer = row.get("output", row.get("response"))
    if "instruction" not in row or answer is None:
        raise DataError(
            f"no conversation in a row with the columns {', '.join(map(str, row))}; known: messages; instruction, "
            f"input or context, output or response; {', '.join(_TREE)}"
        )
    more = str(row.get("input", row.get("context")) or "").strip()
    question = str(row["instruction"]).strip()
    return [("user", f"{question}\n\n{more}" if more else question), ("assistant", str(answer))]


def _path(tree: list[Row], language: str | None) -> Messages:
    """From the root along the replies of the best rank (0; the first where there is none), up to the last answer."""
    root = next((row for row in tree if not row.get("parent_id")), None)
    if root is None or (language is not None and root.get("lang") != language):
        return []
    replies: dict[str, list[Row]] = {}
    for row in tree:
        replies.setdefault(str(row.get("parent_id")), []).append(row)
    path: Messages = []
    node: Row | None = root
    while node is not None:
        path.append((_role(node["role"]), str(node["text"])))
        following = replies.get(str(node["message_id"]), [])
        node = min(following, key=_rank) if following else None
    while path and path[-1][0] != "assistant":
        path.pop()
    return path


def _rank(row: Row) -> float:
    rank = row.get("rank")
    return float("inf") if rank is None else float(rank)


def _role(name: Any) -> str:
    role = _ROLES.get(str(name), str(name))
    if role not in ("system", "user", "assistant"):
        raise DataError(f"a message has the role '{name}'; known: system, user (prompter, human), assistant (gpt)")
    return role
