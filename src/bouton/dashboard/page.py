"""The local dashboard: one HTML file that needs no other file and no network."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from bouton.dashboard.collect import RunData, collect
from bouton.dashboard.panels import Section, layout
from bouton.evidence.frame import FINISHED
from bouton.files import write_text

FILE = "dashboard.html"
# Column of the table of runs -> heading and how a value is written.
_COLUMNS: dict[str, tuple[str, str]] = {
    "final_val_loss": ("loss (nats)", "{:.4f}"),
    "final_val_bits_per_byte": ("bits per byte", "{:.4f}"),
    "final_val_accuracy": ("accuracy", "{:.3f}"),
    "step": ("steps", "{:,.0f}"),
    "tokens": ("tokens", "{:,.0f}"),
    "parameters": ("parameters", "{:,.0f}"),
    "training_flops": ("FLOPs", "{:.3g}"),
    "tokens_per_second": ("tokens/s", "{:,.0f}"),
    "wall_seconds": ("seconds", "{:,.0f}"),
    "peak_memory_bytes": ("peak memory (GiB)", "{:.2f}"),
    "energy_joules": ("energy (J)", "{:,.0f}"),
}


def write(folder: str | Path, *, out: str | Path | None = None, media: int = 6) -> Path:
    """Write the dashboard of a run folder or of a sweep and return its path.

    Args:
        folder: a run, finished or not, or a folder of runs.
        out: the file; None: ``dashboard.html`` in ``folder``.
        media: how many steps of every picture are embedded, the first and the last among them; 0: no pictures.

    Raises:
        DataError: no such folder, or no run in it.
    """
    source = Path(folder).expanduser()
    runs = collect(source)
    target = source / FILE if out is None else Path(out).expanduser()
    write_text(target, render(source.resolve().name, runs, media=media))
    return target


def render(title: str, runs: Sequence[RunData], *, media: int = 6) -> str:
    """The page as text."""
    sections = layout(name for run in runs for name in run.series)
    body = "\n".join(
        part for part in (_table(runs), _charts(sections), _samples(runs), _media(runs, media)) if part is not None
    )
    assets = resources.files("bouton.dashboard") / "assets"
    page = (assets / "page.html").read_text()
    fills = {
        "@TITLE@": html.escape(title),
        "@STYLE@": (assets / "page.css").read_text(),
        "@SCRIPT@": (assets / "page.js").read_text(),
        "@DATA@": _json({"runs": [_plain(run) for run in runs], "sections": [_section(s) for s in sections]}),
        "@BODY@": body,
    }
    for mark, text in fills.items():  # the body comes last: what a model writes cannot hold a mark that is still open
        page = page.replace(mark, text)
    return page


def _json(value: Any) -> str:
    """JSON for a script element, which ends at the first ``</``."""
    return json.dumps(value, allow_nan=False).replace("</", "<\\/").replace("<!--", "<\\!--")


def _plain(run: RunData) -> dict[str, Any]:
    return {"name": run.name, "arm": run.arm, "seed": run.seed, "status": run.status, "series": run.series}


def _section(section: Section) -> dict[str, Any]:
    return {"title": section.title, "panels": [vars(panel) for panel in section.panels]}


def _table(runs: Sequence[RunData]) -> str:
    columns = {key: shown for key, shown in _COLUMNS.items() if any(key in run.row for run in runs)}
    head = "".join(f"<th{' class=number' if i > 2 else ''}>{html.escape(name)}</th>" for i, name in enumerate(
        ["run", "seed", "status", *(name for name, _ in columns.values())]))  # fmt: skip
    rows = []
    for index, run in enumerate(runs):
        cells = [_cell(run, key, form) for key, (_, form) in columns.items()]
        status = str(run.row.get("ended") or run.status) if run.status == FINISHED else run.status
        error = f' title="{html.escape(str(run.row["error"]))}"' if "error" in run.row else ""
        label = html.escape(run.arm if len(runs) > 1 else run.name)
        rows.append(
            f'<tr><td><label><input type="checkbox" checked data-run="{index}"><i class="swatch"></i>{label}</label>'
            f"</td><td>{run.seed}</td><td{error}>{html.escape(status)}</td>"
            + "".join(f'<td class="number">{cell}</td>' for cell in cells)
            + "</tr>"
        )
    return (
        f'<section id="runs"><h2>Runs</h2><div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def _cell(run: RunData, key: str, form: str) -> str:
    value = run.row.get(key)
    if value is None:
        return ""
    return form.format(float(value) / (2**30 if key == "peak_memory_bytes" else 1))


def _charts(sections: Sequence[Section]) -> str | None:
    """Empty frames that the script fills."""
    if not sections:
        return "<p>Nothing has been logged yet.</p>"
    parts = []
    for i, section in enumerate(sections):
        figures = "".join(
            f'<figure class="chart" data-section="{i}" data-panel="{j}"><figcaption><b>{html.escape(panel.title)}</b>'
            f"{' (' + html.escape(panel.unit) + ')' if panel.unit else ''}"
            f"<small>{html.escape(panel.doc)}</small></figcaption></figure>"
            for j, panel in enumerate(section.panels)
        )
        parts.append(f'<section><h2>{html.escape(section.title)}</h2><div class="grid">{figures}</div></section>')
    return "\n".join(parts)


def _samples(runs: Sequence[RunData]) -> str | None:
    parts = []
    for run in runs:
        if not run.samples:
            continue
        texts = "".join(
            f'<h4>step {int(sample["step"]):,}</h4><pre class="sample">{html.escape(str(sample["text"]))}</pre>'
            for sample in reversed(run.samples)
        )
        opened = " open" if len(runs) == 1 else ""
        parts.append(f"<details{opened}><summary>{html.escape(run.name)}</summary>{texts}</details>")
    return f'<section id="samples"><h2>Sample texts</h2>{"".join(parts)}</section>' if parts else None


def _media(runs: Sequence[RunData], count: int) -> str | None:
    parts = []
    for run in runs:
        if not run.media or count < 1:
            continue
        figures = "".join(_picture(name, _spread(steps, count)) for name, steps in run.media.items())
        opened = " open" if len(runs) == 1 else ""
        parts.append(
            f"<details{opened}><summary>{html.escape(run.name)}</summary><div class='grid'>{figures}</div></details>"
        )
    return f'<section id="media"><h2>Pictures of the state</h2>{"".join(parts)}</section>' if parts else None


def _picture(name: str, steps: Sequence[tuple[int, Path]]) -> str:
    """All steps of one picture; the slider shows one at a time, the last one at first."""
    images = "".join(
        f'<img alt="{html.escape(name)}, step {step}" data-step="{step}"{"" if i == len(steps) - 1 else " hidden"} '
        f'src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'
        for i, (step, path) in enumerate(steps)
    )
    last = len(steps) - 1
    slider = f'<input type="range" min="0" max="{last}" value="{last}" aria-label="step">' if last else ""
    return (
        f'<figure class="media"><figcaption><b>{html.escape(name)}</b><small>step <span>{steps[-1][0]:,}</span></small>'
        f"</figcaption>{images}{slider}</figure>"
    )


def _spread(steps: Sequence[tuple[int, Path]], count: int) -> list[tuple[int, Path]]:
    """At most ``count`` of the steps, evenly taken, the last one always among them."""
    if count == 1 or len(steps) <= count:
        return list(steps[-count:])
    return [steps[round(i * (len(steps) - 1) / (count - 1))] for i in range(count)]
