"""The command ``bouton``: a table of commands, each imported only when it is used."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass

from bouton.cli.guard import guard
from bouton.errors import ConfigError, suggest


@dataclass(frozen=True)
class Command:
    """A command: ``target`` is ``module:function``; the function takes the words after the command's name."""

    target: str
    summary: str


COMMANDS = {
    "train": Command("bouton.cli.train:main", "train a model; the same as python train.py"),
    "generate": Command("bouton.apps.generate:main", "continue a prompt with a trained run"),
    "chat": Command("bouton.apps.chat:main", "talk with a trained run; it keeps its state between the turns"),
    "redact": Command("bouton.apps.redact:main", "find names, numbers and addresses in a text and hide them"),
    "eval": Command("bouton.apps.evaluate:main", "measure a trained run: calibration, recall, cloze, speed, and more"),
    "export": Command("bouton.apps.export:main", "write a trained run in Hugging Face's format"),
    "report": Command("bouton.apps.report:main", "what a sweep found: statistics, prices, figures"),
    "dashboard": Command("bouton.apps.dashboard:main", "look at a run or a sweep: curves, costs, vitals, samples"),
    "mechanisms": Command("bouton.apps.mechanisms:main", "list the mechanisms: sockets, state, parameters, source"),
    "kernels": Command("bouton.apps.kernels:main", "list the ops and which backends run here, or why not"),
    "bench": Command("bouton.apps.bench:main", "check the ops against their definitions and time them against peers"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run ``bouton <command> key=value ...``; returns the exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if words[0] in ("-V", "--version", "version"):
        from bouton import __version__

        print(f"bouton {__version__}")
        return 0
    return guard(lambda: run(words[0], words[1:]))


def run(name: str, arguments: list[str]) -> int:
    """Run one command with the words that follow its name.

    Raises:
        ConfigError: there is no such command.
    """
    command = COMMANDS.get(name)
    if command is None:
        raise ConfigError(f"command '{name}' is unknown: {suggest(name, COMMANDS)}")
    module, _, function = command.target.partition(":")
    code = getattr(importlib.import_module(module), function)(arguments)
    return int(code or 0)


def usage() -> str:
    """The help of ``bouton``."""
    width = max(map(len, COMMANDS))
    rows = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: bouton COMMAND [key=value ...]",
            "",
            *rows,
            "",
            "bouton COMMAND --help shows the keys of a command. HYDRA_FULL_ERROR=1 shows the traceback of an error.",
        ]
    )
