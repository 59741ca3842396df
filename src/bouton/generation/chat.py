"""A conversation with a model: the sequence state is kept between the turns, so nothing is read twice.

What a turn costs depends on its own length alone, however long the conversation already is, for a body whose state
does not grow; with attention each token looks at the keys that the conversation has left.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bouton.data.chat import ChatTemplate, Message
from bouton.data.tokenizers import StreamDecoder, Tokenizer
from bouton.errors import CheckpointError, ConfigError, DataError
from bouton.files import write_bytes
from bouton.generation.decode import PREFILL_ELEMENTS, check_language_model, evaluating, position_limit
from bouton.generation.sampling import Sampling, row_generator, sample
from bouton.models.body import Body
from bouton.models.sockets import State

DEFAULTS = {"temperature": 0.7, "top_k": 50, "repetition_penalty": 1.15, "repetition_window": 100}
_FORMAT = "bouton-chat 1"
_RANDOM = "random"  # the tensor with the state of the random stream


class Chat:
    """One conversation.

    Attributes:
        finish: why the last reply ended: ``end`` (the model ended its turn), ``max_new_tokens``, or ``max_seq_len``
            (the body cannot represent later positions); None while it is being written or if it was closed early.
        length: tokens that the model has read so far.
        limit: tokens that it can read; None: no end.
    """

    def __init__(
        self,
        model: Body,
        tokenizer: Tokenizer,
        *,
        system: str | None = None,
        sampling: Sampling | None = None,
        max_new_tokens: int = 512,
        seed: int = 0,
    ) -> None:
        """
        Args:
            system: a first turn that says how the model is to behave; None: none.
            sampling: None: :data:`DEFAULTS`.
            max_new_tokens: longest reply.

        Raises:
            ConfigError: an option out of range.
            DataError: the tokenizer has no text.
        """
        if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens = {max_new_tokens!r} is not valid: it must be an integer >= 1")
        check_language_model(model)
        self.template = ChatTemplate(tokenizer)
        self.limit = position_limit(model)
        self._model, self._tokenizer = model, tokenizer
        self._sampling = Sampling(**DEFAULTS) if sampling is None else sampling  # type: ignore[arg-type]
        self._system, self._max_new_tokens, self._seed = system, max_new_tokens, seed
        self._ends = {tokenizer.eot_id, self.template.end_id, *self.template.marker_ids}
        self.reset()

    def reset(self) -> None:
        """Begin a new conversation."""
        self.finish: str | None = None
        self.length = 0
        self._state: State | None = None
        system = [] if not self._system else self.template.turn(Message("system", self._system.strip()))
        self._pending = [self._tokenizer.eot_id, *system]  # tokens that the model has yet to read
        self._recent: deque[int] = deque(maxlen=self._sampling.repetition_window or None)
        self._generator = row_generator(self._seed, ())

    def reply(self, text: str) -> Iterator[str]:
        """The model's answer to ``text``, piece by piece. It may be closed early: the turn then ends where it was cut.

        A turn for which the body has no positions left changes nothing and gives no text; :attr:`finish` says so.
        """
        said = self._tokenizer.encode(text.strip())
        turn = [*self.template.header("user"), *said, self.template.end_id, *self.template.header("assistant")]
        self.finish = None
        if not self._room(len(self._pending) + len(turn)):
            self.finish = "max_seq_len"
            return
        self._recent.extend(said)
        tokens = [*self._pending, *turn]
        decoder = StreamDecoder(self._tokenizer)
        with evaluating(self._model):
            for _ in range(self._max_new_tokens):
                token = self._draw(self._read(tokens))
                if token in self._ends:
                    self.finish = "end"
                    break
                self._recent.append(token)
                tokens, self._pending = [token], [token, self.template.end_id]
                yield decoder.push(token)
                if not self._room(1):
                    self.finish = "max_seq_len"
                    break
            else:
                self.finish = "max_new_tokens"
            yield decoder.flush()

    def _room(self, count: int) -> bool:
        return self.limit is None or self.length + count <= self.limit

    def _read(self, tokens: Sequence[int]) -> Tensor:
        """Logits (1, V) after the last of ``tokens``, which the state then holds: all, or none if interrupted."""
        device = next(self._model.parameters()).device
        row = torch.tensor([list(tokens)], dtype=torch.int64, device=device)
        chunk = max(1, PREFILL_ELEMENTS // self._model.vocab_size)
        output, state = torch.empty(0), self._state
        with torch.inference_mode():
            for begin in range(0, row.shape[1], chunk):
                output, state = self._model(row[:, begin : begin + chunk], state)
        self._state, self._pending = state, [self.template.end_id]
        self.length += row.shape[1]
        return output[:, -1]

    def _draw(self, logits: Tensor) -> int:
        # What the template writes is no repetition: the end of a turn must not become less likely with every turn.
        history = torch.tensor([list(self._recent)], dtype=torch.int64)
        known = logits[:, : self._tokenizer.vocab_size]
        return int(sample(known, self._sampling, [self._generator], history))

    # -- files -------------------------------------------------------------------------------------------------------

    def save(self, path: Path, identity: Mapping[str, str]) -> None:
        """Write the conversation's state as a safetensors file.

        Args:
            identity: what tells the model, compared by :meth:`load`.

        Raises:
            DataError: the file cannot be written.
        """
        from safetensors.torch import save

        tensors: dict[str, Tensor] = {_RANDOM: self._generator.get_state()}
        outline = _outline(self._state, "state", tensors)
        facts = {
            "format": _FORMAT,
            "identity": dict(identity),
            "outline": outline,
            "pending": self._pending,
            "recent": list(self._recent),
            "length": self.length,
        }
        content = save(tensors, {"bouton": json.dumps(facts)})
        try:
            write_bytes(path, content)
        except OSError as error:
            raise DataError(f"{path} cannot be written: {error.strerror}") from None

    def load(self, path: Path, identity: Mapping[str, str]) -> None:
        """Go on with a conversation that :meth:`save` wrote; on an error the present one stays as it is.

        Raises:
            DataError: the file is missing or is none of a conversation.
            CheckpointError: it belongs to another model.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="pt") as file:
                facts = json.loads((file.metadata() or {})["bouton"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except FileNotFoundError:
            raise DataError(f"{path}: there is no such file") from None
        except (OSError, SafetensorError, KeyError, ValueError):
            raise DataError(f"{path} is no saved conversation") from None
        if facts.get("format") != _FORMAT:
            raise DataError(f"{path} has the format {facts.get('format')!r}, this version reads {_FORMAT!r}")
        if facts["identity"] != dict(identity):
            raise CheckpointError(f"{path} is a conversation with another model: only the same checkpoint can go on")
        device = next(self._model.parameters()).device
        self._state = _restored(facts["outline"], tensors, device)
        self._pending, self.length = list(facts["pending"]), int(facts["length"])
        self._recent = deque(facts["recent"], maxlen=self._sampling.repetition_window or None)
        self._generator.set_state(tensors[_RANDOM])
        self.finish = None


def _outline(state: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """The shape of a nested state as JSON, its tensors by their path in ``tensors``."""
    if isinstance(state, Tensor):
        tensors[path] = state.detach().cpu().clone(memory_format=torch.contiguous_format)
        return path
    if isinstance(state, dict):
        return {name: _outline(value, f"{path}.{name}", tensors) for name, value in state.items()}
    if state is None:
        return None
    return [_outline(value, f"{path}.{index}", tensors) for index, value in enumerate(state)]


def _restored(outline: Any, tensors: Mapping[str, Tensor], device: torch.device) -> Any:
    if isinstance(outline, str):
        return tensors[outline].to(device)
    if isinstance(outline, dict):
        return {name: _restored(value, tensors, device) for name, value in outline.items()}
    return None if outline is None else tuple(_restored(value, tensors, device) for value in outline)
