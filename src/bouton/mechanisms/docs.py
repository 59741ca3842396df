"""The page of all mechanisms is written from their classes and from what was measured:
``python -m bouton.mechanisms.docs``.

Costs come from ``benchmarks/results/mechanisms.json`` (``benchmarks/training_step.py --arms none,each``), effects on
the loss from the recorded study ``experiments/stack``. What was not measured stays empty.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bouton.mechanisms import registry
from bouton.mechanisms.base import Mechanism
from bouton.ops import backends

ROOT = Path(__file__).resolve().parents[3]
PAGE = Path("docs") / "mechanisms.md"
COSTS = Path("benchmarks") / "results" / "mechanisms.json"
EFFECTS = Path("experiments") / "stack" / "results" / "statistics.csv"
_COLUMNS = ("arm", "step time", "FLOPs", "parameters", "sequence state", "held-out loss", "verdict at equal tokens")


def page(root: Path = ROOT) -> str:
    """The whole page, for the mechanisms of this package."""
    shown = {name: cls for name, cls in registry.mechanisms().items() if cls.__module__.startswith("bouton.")}
    parts = [
        "# Mechanisms",
        "",
        "Written by `python -m bouton.mechanisms.docs` from the classes and from what was measured.",
        "",
        *costs(root),
        f"{sum(len(cls.skips) for cls in shown.values())} clauses of the contract suite are skipped, each with the "
        "reason that stands below.",
        "",
    ]
    for name, cls in shown.items():
        parts += [f"## {name}", "", *describe(cls), ""]
    return "\n".join(parts).rstrip() + "\n"


def costs(root: Path) -> list[str]:
    """What each arm costs and does, relative to ``none``: the lines of a section, none if nothing was measured."""
    measured, effects = _costs(root / COSTS), _effects(root / EFFECTS)
    if not measured:
        return []
    arms: Mapping[str, Any] = measured["arms"]
    base = arms["none"]
    rows = [_COLUMNS, ("---", *["---:"] * 5, "---")]
    for name, arm in arms.items():
        time = arm["ratio"].get("wall")
        effect = effects.get(name)
        rows.append((
            f"`{name}`",
            "1" if time is None else f"{time['ratio']:.2f} ({time['quartiles'][0]:.2f} to {time['quartiles'][1]:.2f})",
            f"{arm['flops_per_token'] / base['flops_per_token']:.2f}",
            f"{arm['parameters'] / base['parameters']:.2f}",
            f"{arm['state_bytes'] / base['state_bytes']:.2f}",
            "" if effect is None else f"{float(effect['difference']):+.4f} "
            f"[{float(effect['low']):+.4f}, {float(effect['high']):+.4f}]",
            "" if effect is None else f"{effect['verdict']}, {int(float(effect['n']))} seeds",
        ))  # fmt: skip
    settings = dict(word.split("=", 1) for word in measured["overrides"])  # the last of a key counts
    layers = ", ".join(f"{key}={value}" for key, value in settings.items() if key.startswith("model."))
    note = (
        f"Relative to `none`. Step time: median ratio (quartiles) of {measured['rounds']} interleaved optimizer steps "
        f"on {' x '.join(map(str, measured['batch']))} tokens, {_machine(measured['machine'])} ({layers}; kernels: "
        f"{_kernels(measured['kernels'])}). FLOPs per token of a forward pass, as each part states its own; sequence "
        f"state after one row. {_apart(arms)}"
    )
    if effects:
        note += "Held-out loss: paired difference in nats per token with its 95 % interval, from [experiments/stack]"
        note += "(../experiments/stack/README.md), at equal tokens."
    return ["## What each costs", "", note.rstrip(), "", *("| " + " | ".join(row) + " |" for row in rows), ""]


def describe(cls: type[Mechanism]) -> list[str]:
    """The lines about one mechanism."""
    lines = [f"{cls.summary[0].upper()}{cls.summary[1:]}.", ""]
    facts = [
        ("source", cls.source),
        ("sockets", ", ".join(cls.sockets)),
        ("refines", ", ".join(cls.refines)),
        ("publishes", ", ".join(cls.publishes)),
        ("reads", ", ".join(cls.reads)),
        ("sequence state", cls.state),
        ("ops", "; ".join(f"{op} ({', '.join(backends.backends_of(op))})" for op in cls.ops)),
        ("plain body at", "" if cls.neutral is None else
         ", ".join(f"{key} = {_value(value)}" for key, value in cls.neutral.items()) or "its defaults"),
    ]  # fmt: skip
    lines += [f"- {label}: {text}" for label, text in facts if text]
    lines += [f"- skips `{clause}`: {reason}" for clause, reason in cls.skips.items()]
    defaults = cls.Params.defaults()
    rows = [
        (f"`{name}`", _value(defaults[name]), spec.unit, spec.valid(), spec.doc)
        for name, spec in cls.Params.specs().items()
    ]
    if rows:
        lines += ["", *_table(("parameter", "default", "unit", "valid", "meaning"), rows)]
    if cls.vital_names:
        vitals = [(f"`{name}`", meaning) for name, meaning in cls.vital_names.items()]
        lines += ["", *_table(("vital", "what it measures"), vitals)]
    return lines


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    cells = [columns, ["---"] * len(columns), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return ["| " + " | ".join(row) + " |" for row in cells]


def _value(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _costs(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def _effects(path: Path) -> dict[str, dict[str, str]]:
    """Arm -> its comparison at equal tokens."""
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        return {row["arm"]: row for row in csv.DictReader(file) if row["equal"] == "tokens" and row.get("difference")}


def _apart(arms: Mapping[str, Any]) -> str:
    """Which arms were added to the table later, and on which machine; empty if none was."""
    groups: dict[str, list[str]] = {}
    for name, arm in arms.items():
        if "machine" in arm:
            where = f"{arm['rounds']} steps, {_machine(arm['machine'])}; kernels: {_kernels(arm['kernels'])}"
            groups.setdefault(where, []).append(f"`{name}`")
    told = "; ".join(f"{', '.join(names)} ({where})" for where, names in groups.items())
    return f"Measured apart, in turns with `none` as well: {told}. " if told else ""


def _kernels(chosen: Mapping[str, str]) -> str:
    return ", ".join(f"{op} {name}" for op, name in chosen.items())


def _machine(facts: Mapping[str, Any]) -> str:
    threads = facts.get("threads")
    return f"{facts.get('cpu') or facts.get('device')}" + (f", {threads} thread(s)" if threads else "")


def main() -> int:
    """Write the page."""
    (ROOT / PAGE).write_text(page())
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
