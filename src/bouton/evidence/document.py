"""A small document of headings, paragraphs, tables and figures that writes itself as Markdown and as one HTML file."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """Text with ``**bold**`` and `` `code` ``."""

    text: str


@dataclass(frozen=True)
class Items:
    """A bulleted list."""

    texts: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Columns whose name ends with ``#`` are numbers, set flush right; the mark is not shown.

    ``classes`` holds a CSS class per row.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Picture:
    """A PNG, linked in Markdown and embedded in HTML."""

    path: Path
    caption: str


Block = Heading | Paragraph | Items | Table | Picture


@dataclass
class Document:
    """Blocks in reading order."""

    title: str
    blocks: list[Block] = field(default_factory=list)

    def add(self, *blocks: Block) -> None:
        """Append blocks."""
        self.blocks.extend(blocks)

    def markdown(self, folder: Path) -> str:
        """As Markdown, with pictures relative to ``folder``."""
        parts = [f"# {self.title}"]
        for block in self.blocks:
            match block:
                case Heading(text, level):
                    parts.append(f"{'#' * level} {text}")
                case Paragraph(text):
                    parts.append(text)
                case Items(texts):
                    parts.append("\n".join(f"- {text}" for text in texts))
                case Table(columns, rows):
                    parts.append(_markdown_table(columns, rows))
                case Picture(path, caption):
                    parts.append(f"![{caption}]({path.relative_to(folder).as_posix()})\n\n*{caption}*")
        return "\n\n".join(parts) + "\n"

    def html(self) -> str:
        """As one HTML file that needs no other file and no network."""
        body = [f"<h1>{_inline(self.title)}</h1>"]
        for block in self.blocks:
            match block:
                case Heading(text, level):
                    body.append(f"<h{level}>{_inline(text)}</h{level}>")
                case Paragraph(text):
                    body.append(f"<p>{_inline(text)}</p>")
                case Items(texts):
                    body.append("<ul>" + "".join(f"<li>{_inline(text)}</li>" for text in texts) + "</ul>")
                case Table(columns, rows, classes):
                    body.append(_html_table(columns, rows, classes))
                case Picture(path, caption):
                    data = base64.b64encode(path.read_bytes()).decode()
                    body.append(
                        f'<figure><img alt="{html.escape(caption)}" src="data:image/png;base64,{data}">'
                        f"<figcaption>{_inline(caption)}</figcaption></figure>"
                    )
        return _PAGE.replace("@TITLE@", html.escape(self.title)).replace("@BODY@", "\n".join(body))


def _markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "| " + " | ".join(column.rstrip("#") for column in columns) + " |"
    rule = "|" + "|".join("---:" if column.endswith("#") else "---" for column in columns) + "|"
    return "\n".join(
        [head, rule, *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)]
    )


def _html_table(columns: Sequence[str], rows: Sequence[Sequence[str]], classes: Sequence[str]) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=number' if column.endswith('#') else ''}>{_inline(cell)}</{tag}>"
            for column, cell in zip(columns, cells, strict=True)
        )

    head = row([column.rstrip("#") for column in columns], "th")
    names = [*classes, *[""] * (len(rows) - len(classes))]
    body = "".join(
        f"<tr{f' class={name}' if name else ''}>{row(cells, 'td')}</tr>"
        for cells, name in zip(rows, names, strict=True)
    )
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _inline(text: str) -> str:
    escaped = html.escape(text, quote=False)
    escaped = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", escaped)
    return re.sub(r"`(.+?)`", r"<code>\1</code>", escaped)


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>@TITLE@</title><style>
:root { color-scheme: light dark; --line: #d9d9d9; --soft: #f6f6f4; --ink: #222; --paper: #fff; --good: #00704f;
        --bad: #b04600; --muted: #6b6b6b }
@media (prefers-color-scheme: dark) { :root { --line: #444; --soft: #262626; --ink: #e6e6e6; --paper: #1b1b1b;
        --good: #4cc9a0; --bad: #f0915a; --muted: #a0a0a0 } }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 70rem;
       margin: 2.5rem auto; padding: 0 1.2rem }
h1 { font-size: 1.7rem; margin-bottom: .3rem } h2 { font-size: 1.25rem; margin-top: 2.4rem }
p, ul { max-width: 46rem } code { background: var(--soft); padding: .1em .3em; border-radius: 3px; font-size: .9em }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-size: .88rem; margin: 1rem 0 }
th, td { padding: .34rem .7rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap }
th { border-bottom: 2px solid var(--line); font-weight: 600 } tbody tr:hover { background: var(--soft) }
.number { text-align: right; font-variant-numeric: tabular-nums }
.helps td:last-child, .helps strong { color: var(--good) } .hurts td:last-child, .hurts strong { color: var(--bad) }
.control td { color: var(--muted) } figure { margin: 1.4rem 0 }
img { max-width: 100%; background: #fff; border-radius: 6px } figcaption { color: var(--muted); font-size: .88rem }
</style></head><body>
@BODY@
</body></html>
"""
