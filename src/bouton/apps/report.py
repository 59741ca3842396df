"""``bouton report``: statistics, prices and figures of a sweep, computed from its run folders."""

from __future__ import annotations

import webbrowser
from dataclasses import dataclass
from pathlib import Path

from bouton.apps.options import option, parse, terminal
from bouton.errors import ConfigError
from bouton.evidence.metrics import DEFAULT
from bouton.evidence.report import report
from bouton.evidence.statistics import HELPS, HURTS

_STYLES = {HELPS: "green", HURTS: "red"}


@dataclass
class Options:
    """The keys of the command."""

    folder: str = option("folder with the runs of a sweep")
    metric: str = option("final_ or best_ val_loss, val_bits_per_byte, val_perplexity, val_accuracy, ...", DEFAULT)
    baseline: str | None = option(
        "arm that all others are compared with (none given: the one without mechanisms)", None
    )
    interest: float | None = option("smallest effect of interest, in the metric's unit (0.01 nats per token)", None)
    alpha: float = option("level of the tests", 0.05)
    out: str | None = option("where to write (none given: into the folder)", None)
    open: str = option("yes: show report.html in the browser; --open says the same", "no")


def main(argv: list[str]) -> int:
    """Run the command; returns the exit code."""
    words = ["open=yes" if word == "--open" else word for word in argv]
    words.sort(key=lambda word: "=" in word)  # the folder may stand behind --open
    options = parse(Options, words, usage="bouton report FOLDER [key=value ...]", positional="folder")
    if options is None:
        return 0
    if options.open not in ("yes", "no"):
        raise ConfigError(f"open = {options.open} is not valid: yes or no")
    page = report(
        options.folder,
        options.metric,
        baseline=options.baseline,
        alpha=options.alpha,
        interest=options.interest,
        out=options.out,
    )
    _say(page)
    if options.open == "yes" and not webbrowser.open(page.resolve().as_uri()):
        raise ConfigError(f"open = yes: no browser was found here; the report is {page}")
    return 0


def _say(page: Path) -> None:
    """The verdicts, and where everything is."""
    text = page.with_suffix(".md").read_text()
    verdicts = text.partition("## Verdicts\n")[2].partition("\n## ")[0].partition("\n![")[0]
    console = terminal()
    for line in verdicts.strip().splitlines():
        name, _, rest = line.removeprefix("- ").partition("**. ")
        arm, _, verdict = name.strip("*").partition(": ")
        console.print(f"{arm}: {verdict}", style=_STYLES.get(verdict, "bold"), markup=False)
        console.print(f"    {rest}", markup=False)
    console.print(f"report: {page}", markup=False)
