"""``bouton redact``: write a text with the types of its entities in their places, ``[PERSON]`` for a name."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bouton.apps.generate import open_output, write
from bouton.apps.options import option, parse
from bouton.errors import ConfigError
from bouton.files import reading_text
from bouton.generation.redact import Redactor, Tagger
from bouton.runs import load


@dataclass
class Options:
    """The keys of the command."""

    run: str = option("run folder of a run with data=pii")
    text: tuple[str, ...] = option("text to redact; several: give the key again; none, and no file: standard input", ())
    file: str | None = option("file with the text; -: standard input", None)
    reset: str = option("line: every line is a text of its own; never: one text, the state is carried on", "line")
    checkpoint: str = option("best, last, or a checkpoint file", "best")
    device: str = option("auto, cpu, cuda, cuda:1, ...", "auto")
    kernels: str = option("backend of the ops: auto, torch, rust or triton", "auto")


def main(argv: list[str]) -> int:
    """Run the command; returns the exit code."""
    options = parse(Options, argv, usage='bouton redact run=FOLDER text="..." [key=value ...]')
    if options is None:
        return 0
    if options.text and options.file is not None:
        raise ConfigError("text and file are both given: use one of them")
    tagger = Tagger.of(load(options.run, options.checkpoint, options.device, options.kernels))
    redactor = Redactor(tagger, options.reset)
    with open_output() as out:
        for piece in _pieces(options):
            write(out, redactor.push(piece))
            out.flush()
        write(out, redactor.close())
    return 0


def _pieces(options: Options) -> Iterator[str]:
    """The text as it arrives, line by line."""
    if options.text:
        yield from (text + "\n" for text in options.text)
    elif options.file in (None, "-"):
        yield from sys.stdin
    else:
        path = Path(str(options.file)).expanduser()
        with reading_text(f"file = {path}"), path.open(encoding="utf-8", newline="") as lines:
            yield from lines
