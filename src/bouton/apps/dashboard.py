"""``bouton dashboard``: a run or a sweep to look at, as a local page or as a W&B workspace and report."""

from __future__ import annotations

import webbrowser
from dataclasses import dataclass

from bouton.apps.options import option, parse, terminal
from bouton.errors import ConfigError, suggest

TARGETS = ("html", "wandb")


@dataclass
class Options:
    """The keys of the command."""

    run: str = option("a run folder, or a folder of runs")
    to: str = option("html: a local page that needs no network; wandb: the project's workspace and a report", "html")
    out: str | None = option("html: the file to write (none given: dashboard.html in the folder)", None)
    media: int = option("html: steps of every picture that are embedded; 0: no pictures", 6)
    open: str = option("yes: show it in the browser; --open says the same", "no")


def main(argv: list[str]) -> int:
    """Run the command; returns the exit code."""
    words = ["open=yes" if word == "--open" else word for word in argv]
    words.sort(key=lambda word: "=" in word)  # the folder may stand behind --open
    options = parse(Options, words, usage="bouton dashboard run=FOLDER [key=value ...]", positional="run")
    if options is None:
        return 0
    if options.to not in TARGETS:
        raise ConfigError(f"to = {options.to} is unknown: {suggest(options.to, TARGETS)}")
    if options.open not in ("yes", "no"):
        raise ConfigError(f"open = {options.open} is not valid: yes or no")
    if options.media < 0:
        raise ConfigError(f"media = {options.media} is not valid: an integer >= 0")
    console = terminal()
    if options.to == "wandb":
        if options.out is not None:
            raise ConfigError(f"out = {options.out} has no effect with to = wandb")
        from bouton.dashboard import workspace

        urls = workspace.create(options.run)
        for name, url in urls.items():
            console.print(f"{name}: {url}", markup=False, soft_wrap=True)
        address = urls["workspace"]
    else:
        from bouton.dashboard.page import write

        page = write(options.run, out=options.out, media=options.media)
        console.print(f"dashboard: {page}", markup=False, soft_wrap=True)
        address = page.resolve().as_uri()
    if options.open == "yes" and not webbrowser.open(address):
        raise ConfigError(f"open = yes: no browser was found here; the dashboard is {address}")
    return 0
