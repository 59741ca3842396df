"""Batched decoding with the model's explicit state: key/value cache and mechanism state, one row per continuation.

Prompts of different length share a batch by padding on the left; the padding is a document of its own (``starts``), so
nothing of it reaches the prompt, and a row's text is what it would be alone. Rows that end leave the batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bouton.data.tokenizers import StreamDecoder, Tokenizer
from bouton.errors import ConfigError
from bouton.generation.sampling import Sampling, row_generator, sample
from bouton.generation.text import RowText
from bouton.models.body import Body
from bouton.models.sockets import State

# A prompt is read in chunks whose logits have at most this many elements (128 MiB in float32).
PREFILL_ELEMENTS = 1 << 25


@dataclass(frozen=True)
class Piece:
    """A piece of one row's text. The last piece of a row, perhaps empty, says why the row ends.

    Attributes:
        row: prompt index * num_samples + sample index.
        text: complete characters.
        token: the token it comes from; None if the row ended without a further token.
        finish: None, or ``eot`` (the model ended the document), ``stop`` (a stop string), ``max_new_tokens``, or
            ``max_seq_len`` (the body cannot represent later positions).
    """

    row: int
    text: str
    token: int | None = None
    finish: str | None = None


@dataclass
class Completion:
    """One finished row: its text without prompt and stop string, its tokens as drawn, and why it ended."""

    prompt: str
    text: str
    tokens: list[int]
    finish: str


def generate(model: Body, tokenizer: Tokenizer, prompts: Sequence[str], **options: Any) -> list[Completion]:
    """Continue every prompt; the options are those of :func:`stream`.

    Returns:
        ``num_samples`` completions per prompt, those of the first prompt first.
    """
    samples = options.get("num_samples", 1)
    done = [Completion(prompt, "", [], "") for prompt in prompts for _ in range(samples)]
    for piece in stream(model, tokenizer, prompts, **options):
        row = done[piece.row]
        row.text += piece.text
        row.finish = piece.finish or row.finish
        if piece.token is not None:
            row.tokens.append(piece.token)
    return done


def stream(
    model: Body,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 200,
    sampling: Sampling | None = None,
    stop: Sequence[str] = (),
    seed: int = 0,
    num_samples: int = 1,
    batch_size: int = 64,
) -> Iterator[Piece]:
    """Continue every prompt, handing out text as it becomes certain.

    The model is in evaluation mode while the iterator is alive; its own mode returns when the iterator ends or is
    closed. Parameters and buffers stay as they are.

    Args:
        prompts: each is the beginning of a document; it may be empty.
        max_new_tokens: at most so many tokens per row.
        sampling: how a token is chosen; None: the defaults of :class:`Sampling`.
        stop: a row ends before the first of these strings in its text, wherever the borders of the tokens lie.
        seed: with a prompt and the number of the sample it determines a row's random stream.
        num_samples: continuations per prompt (a prompt that is given twice gets different ones).
        batch_size: rows decoded together; bounds the memory, does not change the texts.

    Raises:
        ConfigError: an option out of range, or a prompt that is longer than the body can read.
    """
    for name, value, low in (
        ("max_new_tokens", max_new_tokens, 0),
        ("num_samples", num_samples, 1),
        ("batch_size", batch_size, 1),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise ConfigError(f"{name} = {value!r} is not valid: it must be an integer >= {low}")
    chosen = Sampling() if sampling is None else sampling
    check_language_model(model)
    if tokenizer.vocab_size > model.vocab_size:
        raise ConfigError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model only {model.vocab_size}: they do not belong "
            f"together"
        )
    rows = _rows(tokenizer, prompts, stop, seed, num_samples)
    limit = position_limit(model)
    for row in rows:
        if limit is not None and len(row.prompt) > limit:
            raise ConfigError(
                f"the prompt has {len(row.prompt)} tokens, more than model.max_seq_len = {limit}: shorten it"
            )
    return _stream(model, tokenizer, rows, chosen, max_new_tokens, batch_size, limit)


def check_language_model(model: Body) -> None:
    """Raise ConfigError if the body labels tokens instead of predicting the next one."""
    if model.num_labels is not None:
        raise ConfigError("this model labels tokens and cannot continue a text: use bouton redact")


def position_limit(model: Body) -> int | None:
    """The number of positions that the body can represent; None: it has no end (rotary or no positions)."""
    config = getattr(model, "config", None)
    return model.max_seq_len if getattr(config, "position", None) == "learned" else None


def prompt_tokens(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """What the model reads for a prompt: a text begins as every document in training does, with the end-of-text token.

    Numbers (``mqar``) are taken as they are, unless there are none.
    """
    tokens = tokenizer.encode(prompt)
    return tokens if tokens and tokenizer.kind == "integers" else [tokenizer.eot_id, *tokens]


@dataclass
class _Row:
    """One continuation in the making."""

    index: int
    prompt: tuple[int, ...]
    generator: torch.Generator
    text: RowText
    count: int = 0


def _rows(tokenizer: Tokenizer, prompts: Sequence[str], stop: Sequence[str], seed: int, num_samples: int) -> list[_Row]:
    rows: list[_Row] = []
    given: Counter[tuple[int, ...]] = Counter()
    for prompt in prompts:
        tokens = tuple(prompt_tokens(tokenizer, prompt))
        for _ in range(num_samples):
            generator = row_generator(seed, tokens, given[tokens])
            rows.append(_Row(len(rows), tokens, generator, RowText(StreamDecoder(tokenizer), stop)))
            given[tokens] += 1
    return rows


def _stream(
    model: Body,
    tokenizer: Tokenizer,
    rows: list[_Row],
    sampling: Sampling,
    max_new_tokens: int,
    batch_size: int,
    limit: int | None,
) -> Iterator[Piece]:
    if max_new_tokens == 0:
        yield from (Piece(row.index, "", finish="max_new_tokens") for row in rows)
        return
    with evaluating(model):
        for first in range(0, len(rows), batch_size):
            active = rows[first : first + batch_size]
            distinct = {prompt: i for i, prompt in enumerate(dict.fromkeys(row.prompt for row in active))}
            logits, state = _prefill(model, list(distinct))
            source = [distinct[row.prompt] for row in active]
            if source != list(range(len(distinct))):
                logits, state = logits[source], take(state, source)
            history = _padded([row.prompt for row in active], -1) if sampling.repetition_penalty != 1.0 else None
            while active:
                # Entries of the head beyond the tokenizer's vocabulary are no tokens.
                drawn = sample(logits[:, : tokenizer.vocab_size], sampling, [row.generator for row in active], history)
                numbers = drawn.tolist()
                kept: list[int] = []
                for i, (row, token) in enumerate(zip(active, numbers, strict=True)):
                    piece = _accept(row, token, tokenizer.eot_id, max_new_tokens, limit)
                    if piece.finish is None:
                        kept.append(i)
                    yield piece
                if not kept:
                    break
                if len(kept) < len(active):
                    active = [active[i] for i in kept]
                    drawn, state = drawn[kept], take(state, kept)
                    history = None if history is None else history[kept]
                if history is not None:
                    history = torch.cat((history, drawn.cpu()[:, None]), dim=1)
                with torch.inference_mode():
                    output, state = model(drawn[:, None], state)
                logits = output[:, -1]


def _accept(row: _Row, token: int, eot: int, max_new_tokens: int, limit: int | None) -> Piece:
    """Add a token to its row and say what follows from it."""
    row.count += 1
    if token == eot:
        text = row.text.finish()
        return Piece(row.index, text, token, "stop" if row.text.stopped else "eot")
    text = row.text.push(token)
    finish: str | None = None
    if row.text.stopped:
        finish = "stop"
    elif row.count >= max_new_tokens:
        finish = "max_new_tokens"
    elif limit is not None and len(row.prompt) + row.count > limit:
        finish = "max_seq_len"
    if finish is not None:
        text += row.text.finish()
        finish = "stop" if row.text.stopped else finish
    return Piece(row.index, text, token, finish)


def _prefill(model: Body, prompts: list[tuple[int, ...]]) -> tuple[Tensor, State]:
    """Logits (B, V) after the last token of each prompt, and the state there."""
    device = next(model.parameters()).device
    tokens = _padded(prompts, 0).to(device)
    batch, length = tokens.shape
    begins = torch.tensor([length - len(prompt) for prompt in prompts], device=device)
    starts: Tensor | None = torch.arange(length, device=device)[None] == begins[:, None]
    if not bool(begins.any()):
        starts = None
    chunk = max(1, PREFILL_ELEMENTS // (batch * model.vocab_size))
    state: State | None = None
    logits = torch.empty(0)
    with torch.inference_mode():
        for first in range(0, length, chunk):
            part = slice(first, first + chunk)
            output, state = model(tokens[:, part], state, starts=None if starts is None else starts[:, part])
            logits = output[:, -1]
    if state is None:
        raise ValueError("a prompt needs at least one token")
    return logits, state


def _padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    """(B, longest) int64, shorter rows filled on the left."""
    longest = max(len(row) for row in rows)
    return torch.tensor([[fill] * (longest - len(row)) + list(row) for row in rows], dtype=torch.int64)


def take(state: Any, rows: Sequence[int]) -> Any:
    """The given batch rows of a state, in the given order (a row may be taken several times)."""
    if isinstance(state, Tensor):
        return state[list(rows)]
    if isinstance(state, dict):
        return {name: take(value, rows) for name, value in state.items()}
    return type(state)(take(value, rows) for value in state)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; every module then gets back its own mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
