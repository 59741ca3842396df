"""The YAML of a mechanism is written from its parameters: ``python -m bouton.mechanisms.yaml [NAME ...]``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from bouton.mechanisms import registry
from bouton.mechanisms.base import Mechanism


def render(cls: type[Mechanism]) -> str:
    """The text of ``conf/mechanism/<name>.yaml``: each parameter with its default, meaning, unit and valid values."""
    lines = [f"# {cls.name}: {cls.summary}", f"# Source: {cls.source}", f"{cls.name}:"]
    defaults = cls.Params.defaults()
    if not defaults:
        lines[-1] += " {}"
    entries = [(f"  {name}: {_literal(defaults[name])}", spec) for name, spec in cls.Params.specs().items()]
    column = max((len(entry) for entry, _ in entries), default=0)
    for entry, spec in entries:
        unit = f" [{spec.unit}]" if spec.unit else ""
        lines.append(f"{entry:<{column}}  # {spec.doc}{unit}; {spec.valid()}")
    return "\n".join(lines) + "\n"


def _literal(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        text = repr(value)
        # YAML 1.1 reads 1e-05 as text: it wants a point in the mantissa.
        return text if "e" not in text or "." in text else text.replace("e", ".0e")
    return str(value)


def main(argv: list[str]) -> int:
    """Write the YAML files of the named mechanisms (all if none is named) into ``conf/mechanism``."""
    folder = Path(__file__).resolve().parents[3] / "conf" / "mechanism"
    folder.mkdir(parents=True, exist_ok=True)
    for name in argv or registry.mechanisms():
        if not registry.get(name).__module__.startswith("bouton."):
            print(render(registry.get(name)), end="")  # of another package, which needs no file: it may keep one
            continue
        path = folder / f"{name}.yaml"
        path.write_text(render(registry.get(name)))
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
