"""Finding entities with a trained body, and writing a text with their types in their places.

The body reads each token once: a sequence state is carried, so a spiking or gated recurrent body redacts a stream of
any length with constant memory and work per token. Text is written as soon as its label is known, ``delay`` tokens
later.
"""

from __future__ import annotations

import codecs
import re
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bouton.data.pii.bio import Span, begins_entity, decode_labels, text_spans, token_offsets
from bouton.errors import ConfigError
from bouton.generation.decode import position_limit

if TYPE_CHECKING:
    from bouton.data.tokenizers import Tokenizer
    from bouton.models.body import Body
    from bouton.runs import Run

RESETS = ("line", "never")
# Between a character and white space there is a border of tokens, whatever follows (byte-level BPE looks no further).
_BORDER = re.compile(r"\S(?=\s\S*\s*\S)", re.DOTALL)


class Tagger:
    """A body that labels tokens, with what is needed to read its labels.

    Args:
        body: with ``num_labels`` outputs; put in evaluation mode.
        types: of the entities, in the order of the labels.
        delay: tokens between a token and the place where its label is read.
    """

    def __init__(self, body: Body, tokenizer: Tokenizer, types: Sequence[str], delay: int) -> None:
        self.body = body.eval()
        self.tokenizer = tokenizer
        self.types = tuple(types)
        self.delay = delay
        self.device = next(body.parameters()).device

    @classmethod
    def of(cls, run: Run) -> Tagger:
        """The tagger that a run has trained.

        Raises:
            ConfigError: it has learned something else.
        """
        data = run.config.data
        if data.name != "pii":
            raise ConfigError(f"run = {run.folder} finds no entities: it was trained on data={data.name}, not data=pii")
        return cls(run.model, run.tokenizer, [str(name) for name in data.types], int(data.delay))

    @torch.inference_mode()
    def labels(self, tokens: Sequence[Sequence[int]]) -> list[list[int]]:
        """The labels of the tokens of several texts, each from a fresh state.

        Raises:
            ConfigError: a text is longer than the body can read.
        """
        if not tokens:
            return []
        longest = max(map(len, tokens)) + 1 + self.delay
        self._check_length(longest)
        rows = np.full((len(tokens), longest), self.tokenizer.eot_id, dtype=np.int64)
        for row, ids in enumerate(tokens):
            rows[row, 1 : 1 + len(ids)] = ids
        logits, _ = self.body(torch.from_numpy(rows).to(self.device))
        best = logits.argmax(-1)[:, 1 + self.delay :].tolist()
        return [labels[: len(ids)] for labels, ids in zip(best, tokens, strict=True)]

    def spans(self, texts: Sequence[str], batch_size: int = 32) -> list[list[Span]]:
        """The entities of each text, as spans of characters."""
        found: list[list[Span]] = []
        for begin in range(0, len(texts), batch_size):
            part = texts[begin : begin + batch_size]
            tokens = self.tokenizer.encode_batch(part)
            for text, ids, labels in zip(part, tokens, self.labels([i.tolist() for i in tokens]), strict=True):
                spans = decode_labels(labels, self.types)
                found.append(text_spans(text, token_offsets(self.tokenizer, ids), spans))
        return found

    def _check_length(self, length: int) -> None:
        limit = position_limit(self.body)
        if limit is not None and length > limit:
            raise ConfigError(
                f"the text has {length - 1 - self.delay} tokens, too many for model.max_seq_len = {limit}: this body "
                f"has learned positions, which end there; divide the text"
            )


class Redactor:
    """Redacts a stream of text: ``[TYPE]`` stands where an entity stood.

    Args:
        reset: ``line``: every line is a text of its own, read with fresh state; ``never``: the state goes on through
            everything.
    """

    def __init__(self, tagger: Tagger, reset: str = "line") -> None:
        if reset not in RESETS:
            raise ConfigError(f"reset = {reset!r} is not valid: {' or '.join(RESETS)}")
        self._tagger = tagger
        self._reset = reset
        self._waiting = ""  # text that may still become part of another token
        self._begin()

    def _begin(self) -> None:
        self._state: Any = None
        self._read = 0  # tokens that the body has read, the first eot included
        self._queue: deque[bytes] = deque()  # tokens without a label so far
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._label = 0  # of the last token
        self._marked = False  # the type of the entity has been written
        self._held = b""  # white space at the end of an entity, which belongs to it only if it goes on

    def push(self, text: str) -> str:
        """Take text; returns what is certain by now."""
        *lines, rest = text.split("\n") if self._reset == "line" else [text]
        out = "".join(self._take(line) + self._end() + "\n" for line in lines)
        return out + self._take(rest)

    def close(self) -> str:
        """The rest at the end of the stream."""
        return self._end()

    def _take(self, text: str) -> str:
        """Tokens of which no later text can change anything go to the body."""
        self._waiting += text
        border = None
        for border in _BORDER.finditer(self._waiting):  # noqa: B007 (the last one)
            pass
        if border is None:
            return ""
        ready, self._waiting = self._waiting[: border.end()], self._waiting[border.end() :]
        return self._label_text(ready)

    def _end(self) -> str:
        """The text is complete: its last labels come behind as many fillings."""
        out = self._label_text(self._waiting)
        if self._read:
            out += self._feed([self._tagger.tokenizer.eot_id] * self._tagger.delay)
        out += self._decoder.decode(self._held, final=True)
        self._waiting = ""
        self._begin()
        return out

    def _label_text(self, text: str) -> str:
        tokenizer = self._tagger.tokenizer
        tokens = tokenizer.encode(text)
        if not tokens:
            return ""
        self._queue.extend(tokenizer.string(token) for token in tokens)
        return self._feed(tokens if self._read else [tokenizer.eot_id, *tokens])

    @torch.inference_mode()
    def _feed(self, tokens: list[int]) -> str:
        if not tokens:
            return ""
        self._tagger._check_length(self._read + len(tokens))
        row = torch.tensor([tokens], device=self._tagger.device)
        logits, self._state = self._tagger.body(row, self._state)
        early = max(0, 1 + self._tagger.delay - self._read)  # places before that of the first token's label
        self._read += len(tokens)
        out = b"".join(self._write(label, self._queue.popleft()) for label in logits[0, early:].argmax(-1).tolist())
        return self._decoder.decode(out)

    def _write(self, label: int, data: bytes) -> bytes:
        """What stands for a token: itself, or the type at the first one of an entity (white space is kept)."""
        out = b""
        if label == 0 or begins_entity(label, self._label):
            out, self._held, self._marked = self._held, b"", False
        self._label = label
        if label == 0:
            return out + data
        if not self._marked:
            inside = data.lstrip()
            out += data[: len(data) - len(inside)]
            data = inside
            if data:
                out += f"[{self._tagger.types[(label - 1) // 2]}]".encode()
                self._marked = True
        self._held = data[len(data.rstrip()) :] if data.strip() else self._held + data
        return out


def redact(text: str, spans: Sequence[Span]) -> str:
    """The text with ``[TYPE]`` for each of these entities."""
    out, last = [], 0
    for begin, end, name in spans:
        out += [text[last:begin], f"[{name}]"]
        last = end
    return "".join([*out, text[last:]])
