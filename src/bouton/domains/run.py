"""One run of a domain: a run folder like that of any other run, a table, one number."""

from __future__ import annotations

import csv
import io
import logging
import time
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from bouton import substrate
from bouton.domains import domain
from bouton.domains.base import Outcome, Recorder, Row
from bouton.errors import BoutonError, ConfigError
from bouton.files import write_atomically, write_json, write_text
from bouton.training.costs import peak_memory, reset_peak_memory
from bouton.training.environment import environment

log = logging.getLogger("bouton.domains")
GRAPH = "graph.bouton"


def run(cfg: DictConfig) -> float:
    """Run what ``cfg.domain`` describes in ``cfg.run_dir``; returns what a sweep lowers.

    ``summary.json`` comes last: without it the run did not end.

    Raises:
        BoutonError: the configuration or the data do not allow it.
    """
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    folder = Path(config.get("run_dir") or Path("runs") / time.strftime("%Y-%m-%d_%H-%M-%S"))
    if config.get("ckpt_path") is not None:
        raise ConfigError(f"ckpt_path = {config['ckpt_path']} is not valid: a domain runs in one go, start it again")
    if (folder / "summary.json").exists():
        raise ConfigError(f"run_dir = {folder} already holds a run: choose another folder")
    if config.get("mechanism"):
        names = "+".join(sorted(config["mechanism"]))
        raise ConfigError(f"mechanism = {names} is not valid: a domain of the graph takes none, write mechanism=none")
    if (devices := (config.get("trainer") or {}).get("devices", 1)) != 1:
        raise ConfigError(f"trainer.devices = {devices} is not valid for a domain of the graph: 1, it uses all cores")
    seed = int(config.get("seed") or 0)
    task = domain(config["domain"], seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
    write_json(folder / "environment.json", environment(seed, 1))
    reset_peak_memory()
    begin, cpu = time.perf_counter(), time.process_time()
    recorder = Recorder(folder)
    try:
        outcome = task.run(recorder)
    except BoutonError:
        if not recorder.rows:  # nothing was learned: no run began here
            (folder / "config.yaml").unlink()
            (folder / "environment.json").unlink()
        raise
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    substrate.save(outcome.graph, folder / GRAPH)
    write_text(folder / "results.csv", as_csv(outcome.table))
    write_text(folder / "results.md", as_markdown(outcome))
    for name, figure in outcome.figures.items():
        _draw(figure, folder / f"{name}.png")
    summary = {
        "status": "finished",
        "step": int(recorder.rows[-1]["step"]) if recorder.rows else 0,
        "final": {"val_error": outcome.objective},
        "facts": outcome.facts,
        "costs": {
            "parameters": outcome.graph.edges,
            "graph_bytes": outcome.graph.size()["total"],
            "wall_seconds": seconds,
            "cpu_seconds": cpu,
            "peak_memory_bytes": peak_memory(torch.device("cpu")),
        },
    }
    write_json(folder / "summary.json", summary)
    show(outcome, task.name, folder, seconds)
    return outcome.objective


def _draw(figure: Figure, path: Path) -> None:
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=120))


def as_csv(rows: list[Row]) -> str:
    """The table as CSV, numbers in full."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def as_markdown(outcome: Outcome) -> str:
    """The table and the facts as Markdown."""
    columns = list(outcome.table[0])
    lines = ["| " + " | ".join(columns) + " |", "| " + " | ".join("---" for _ in columns) + " |"]
    lines += ["| " + " | ".join(text(row[column]) for column in columns) + " |" for row in outcome.table]
    lines += ["", *(f"- {name}: {text(value)}" for name, value in outcome.facts.items())]
    return "\n".join(lines) + "\n"


def text(value: float | str) -> str:
    """A cell."""
    return value if isinstance(value, str) else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def show(outcome: Outcome, name: str, folder: Path, seconds: float) -> None:
    """Print the table for a person."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160  # a file has room
    table = Table(title=name, title_justify="left")
    for column in outcome.table[0]:
        table.add_column(column, justify="left" if column == "method" else "right")
    for row in outcome.table:
        table.add_row(*(text(value) for value in row.values()))
    console.print(table)
    for key, value in outcome.facts.items():
        console.print(f"{key}: {text(value)}", markup=False)
    console.print(f"{seconds:.1f} s; run folder: {folder}", markup=False)
