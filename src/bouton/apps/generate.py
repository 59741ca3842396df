"""``bouton generate``: continue a prompt with a trained run, streaming to the terminal."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from bouton.apps.options import option, parse
from bouton.errors import ConfigError
from bouton.files import reading_text
from bouton.generation import Piece, Sampling, stream
from bouton.runs import Run, load

_SPECS, _DEFAULTS = Sampling.specs(), Sampling.defaults()
# A model of raw bytes can write anything, and a terminal would obey it.
_CONTROL = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


@dataclass
class Options:
    """The keys of the command."""

    run: str = option("run folder")
    prompt: tuple[str, ...] = option("text to continue; several: give the key again", ())
    prompt_file: str | None = option("file with the text to continue; -: standard input", None)
    max_new_tokens: int = option("longest continuation, in tokens", 200)
    temperature: float = option(_SPECS["temperature"].doc, _DEFAULTS["temperature"])
    top_k: int = option(_SPECS["top_k"].doc, _DEFAULTS["top_k"])
    top_p: float = option(_SPECS["top_p"].doc, _DEFAULTS["top_p"])
    min_p: float = option(_SPECS["min_p"].doc, _DEFAULTS["min_p"])
    repetition_penalty: float = option(_SPECS["repetition_penalty"].doc, _DEFAULTS["repetition_penalty"])
    repetition_window: int = option(_SPECS["repetition_window"].doc, _DEFAULTS["repetition_window"])
    stop: tuple[str, ...] = option(r"end before this string (\n: line break); several: give the key again", ())
    seed: int = option("the same seed and prompt give the same text", 0)
    num_samples: int = option("continuations per prompt", 1)
    checkpoint: str = option("best, last, or a checkpoint file", "best")
    device: str = option("auto, cpu, cuda, cuda:1, ...", "auto")
    kernels: str = option("backend of the ops: auto, torch, rust or triton", "auto")


def main(argv: list[str]) -> int:
    """Run the command; returns the exit code."""
    options = parse(Options, argv, usage='bouton generate run=FOLDER prompt="..." [key=value ...]')
    if options is None:
        return 0
    sampling = Sampling(**{name: getattr(options, name) for name in _SPECS})
    prompts = _prompts(options)
    run = load(options.run, options.checkpoint, options.device, options.kernels)
    pieces = stream(
        run.model,
        run.tokenizer,
        prompts,
        max_new_tokens=options.max_new_tokens,
        sampling=sampling,
        stop=[text.replace("\\n", "\n") for text in options.stop],
        seed=options.seed,
        num_samples=options.num_samples,
    )
    with open_output() as out:
        finishes = _print(pieces, prompts, options.num_samples, out)
    _explain(finishes, run)
    return 0


def _prompts(options: Options) -> list[str]:
    if options.prompt_file is None:
        return list(options.prompt) or [""]
    if options.prompt:
        raise ConfigError("prompt and prompt_file are both given: use one of them")
    if options.prompt_file == "-":
        return [sys.stdin.read()]
    path = Path(options.prompt_file).expanduser()
    with reading_text(f"prompt_file = {path}"):
        return [path.read_text(encoding="utf-8")]


def _print(pieces: Iterator[Piece], prompts: list[str], num_samples: int, out: TextIO) -> list[str]:
    """Print the rows one after the other: the first unfinished one as it grows, later ones when it is their turn.

    Returns:
        Why each row ended.
    """
    count = len(prompts) * num_samples
    texts, finishes = [""] * count, [""] * count
    current = tokens = 0
    begin = time.perf_counter()
    _begin_row(out, 0, prompts, num_samples)
    for piece in pieces:
        tokens += piece.token is not None
        texts[piece.row] += piece.text
        finishes[piece.row] = piece.finish or finishes[piece.row]
        while current < count:
            write(out, texts[current])
            texts[current] = ""
            if not finishes[current]:
                break
            out.write("\n")
            current += 1
            if current < count:
                _begin_row(out, current, prompts, num_samples)
        out.flush()
    seconds = time.perf_counter() - begin
    note(f"{tokens} tokens in {seconds:.1f} s, {tokens / max(seconds, 1e-9):.0f} tokens/s")
    return finishes


def _begin_row(out: TextIO, row: int, prompts: list[str], num_samples: int) -> None:
    prompt, sample = divmod(row, num_samples)
    names = []
    if len(prompts) > 1:
        names.append(f"prompt {prompt + 1} of {len(prompts)}")
    if num_samples > 1:
        names.append(f"sample {sample + 1} of {num_samples}")
    if names:
        out.write(f"{'' if row == 0 else chr(10)}--- {', '.join(names)}\n")
    if out.isatty():
        out.write("\x1b[1m")
    write(out, prompts[prompt])
    if out.isatty():
        out.write("\x1b[0m")
    out.flush()


def write(out: TextIO, text: str) -> None:
    out.write(text.translate(_CONTROL) if out.isatty() else text)


def _explain(finishes: list[str], run: Run) -> None:
    if "max_seq_len" in finishes:
        note(
            f"stopped at model.max_seq_len = {run.model.max_seq_len}: this body has learned positions, which end there"
        )


def note(text: str) -> None:
    """A line about the text, kept out of it."""
    sys.stdout.flush()
    print(f"\x1b[2m{text}\x1b[0m" if sys.stderr.isatty() else text, file=sys.stderr)


@contextmanager
def open_output() -> Iterator[TextIO]:
    """Standard output for any text in any locale; a reader that closes the pipe (``| head``) ends it quietly."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    try:
        yield sys.stdout
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes stdout once more at exit, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
