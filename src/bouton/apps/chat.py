"""``bouton chat``: talk with a trained run. Lines on standard input work as well: one turn a line, one answer each."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from bouton.apps.generate import note, open_output, write
from bouton.apps.options import option, parse
from bouton.errors import BoutonError, ConfigError, suggest
from bouton.generation import Sampling
from bouton.generation.chat import DEFAULTS, Chat
from bouton.runs import Run, load

_SPECS = Sampling.specs()
_DEFAULTS = {**Sampling.defaults(), **DEFAULTS}
_COMMANDS = {  # as /help shows them
    "/help": "this list",
    "/reset": "begin a new conversation",
    "/save FILE": "write the state of the conversation",
    "/load FILE": "go on with a saved one",
    "/exit": "end",
}


@dataclass
class Options:
    """The keys of the command."""

    run: str = option("run folder")
    system: str | None = option("a first turn that says how the model is to behave", None)
    max_new_tokens: int = option("longest answer, in tokens", 512)
    temperature: float = option(_SPECS["temperature"].doc, _DEFAULTS["temperature"])
    top_k: int = option(_SPECS["top_k"].doc, _DEFAULTS["top_k"])
    top_p: float = option(_SPECS["top_p"].doc, _DEFAULTS["top_p"])
    min_p: float = option(_SPECS["min_p"].doc, _DEFAULTS["min_p"])
    repetition_penalty: float = option(_SPECS["repetition_penalty"].doc, _DEFAULTS["repetition_penalty"])
    repetition_window: int = option(_SPECS["repetition_window"].doc, _DEFAULTS["repetition_window"])
    seed: int = option("the same seed and turns give the same conversation", 0)
    checkpoint: str = option("best, last, or a checkpoint file", "best")
    device: str = option("auto, cpu, cuda, cuda:1, ...", "auto")
    kernels: str = option("backend of the ops: auto, torch, rust or triton", "auto")


def main(argv: list[str]) -> int:
    """Run the command; returns the exit code."""
    options = parse(Options, argv, usage="bouton chat run=FOLDER [key=value ...]", positional="run")
    if options is None:
        return 0
    run = load(options.run, options.checkpoint, options.device, options.kernels)
    chat = Chat(
        run.model,
        run.tokenizer,
        system=options.system,
        sampling=Sampling(**{name: getattr(options, name) for name in _SPECS}),
        max_new_tokens=options.max_new_tokens,
        seed=options.seed,
    )
    if not knows_turns(run):
        note("this run was never fine-tuned on conversations: it continues texts rather than answers")
    identity = _Identity(run)
    with open_output() as out:
        for line in _lines():
            if line.startswith("/"):
                if not _command(line, chat, identity):
                    break
            elif line:
                _answer(chat, line, out)
    return 0


def knows_turns(run: Run) -> bool:
    """Whether the run was trained on conversations."""
    from bouton.data.build import CHAT_NAMES

    data: Any = run.config.get("data") or {}
    sources = (data.get("sources") or {}).values()
    return data.get("name") in CHAT_NAMES or any(source and source.get("format") == "chat" for source in sources)


class _Identity:
    """What tells the model of a saved conversation; the checkpoint is hashed only when it is first asked for."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._known: dict[str, str] | None = None

    def __call__(self) -> dict[str, str]:
        if self._known is None:
            from bouton.data.store import file_facts

            self._known = {"checkpoint": file_facts(self._run.checkpoint)["sha256"]}
        return self._known


def _lines() -> Iterator[str]:
    """The turns and commands: typed at a prompt, or the lines of standard input."""
    if not sys.stdin.isatty():
        for line in sys.stdin:
            yield line.strip()
        return
    note("/help lists the commands, Ctrl-C cuts an answer short")
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (gives input() its line editing)
    while True:
        try:
            yield input("> ").strip()
        except EOFError:
            print()
            return


def _answer(chat: Chat, text: str, out: TextIO) -> None:
    """Print the answer as it grows. Ctrl-C ends it at a terminal; in a pipe it ends the command."""
    pieces = chat.reply(text)
    try:
        for piece in pieces:
            write(out, piece)
            out.flush()
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
        pieces.close()  # type: ignore[attr-defined]
    out.write("\n")
    out.flush()
    if chat.finish == "max_new_tokens":
        note("cut off at max_new_tokens")
    elif chat.finish == "max_seq_len":
        note(f"the window is full (model.max_seq_len = {chat.limit}, learned positions): /reset begins anew")


def _command(line: str, chat: Chat, identity: Callable[[], dict[str, str]]) -> bool:
    """Carry out a command; False ends the conversation. A mistake is said and changes nothing."""
    word, _, rest = line.partition(" ")
    path = rest.strip()
    try:
        usage = next((usage for usage in _COMMANDS if usage.split()[0] == word), None)
        if usage is None:
            raise ConfigError(f"command '{word}' is unknown: {suggest(word, [name.split()[0] for name in _COMMANDS])}")
        if bool(path) != (usage != word):
            raise ConfigError(f"{word} {'takes nothing after it' if path else f'needs a file: {usage}'}")
        if word == "/exit":
            return False
        if word == "/reset":
            chat.reset()
            note("a new conversation")
        elif word == "/save":
            chat.save(Path(path).expanduser(), identity())
            note(f"saved {chat.length} tokens to {path}")
        elif word == "/load":
            chat.load(Path(path).expanduser(), identity())
            note(f"going on after {chat.length} tokens")
        else:
            for name, meaning in _COMMANDS.items():
                note(f"{name:<12}{meaning}")
    except BoutonError as error:
        note(f"error: {error}")
    return True
