"""``bouton export``: a run as a folder that transformers loads."""

from __future__ import annotations

from dataclasses import dataclass

from bouton.apps.options import option, parse, terminal
from bouton.runs import load


@dataclass
class Options:
    """The keys of the command."""

    run: str = option("run folder")
    to: str = option("new folder for config.json, model.safetensors and tokenizer.json")
    checkpoint: str = option("best, last, or a checkpoint file", "best")


def main(argv: list[str]) -> int:
    """Run the command; returns the exit code."""
    options = parse(Options, argv, usage="bouton export run=FOLDER to=FOLDER")
    if options is None:
        return 0
    from bouton.hub import save_pretrained

    folder = save_pretrained(load(options.run, options.checkpoint, "cpu"), options.to)
    size = sum(file.stat().st_size for file in folder.iterdir())
    terminal().print(f"exported to {folder}: {size / 1e6:.1f} MB", markup=False, soft_wrap=True)
    return 0
