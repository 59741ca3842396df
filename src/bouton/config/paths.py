"""Where the configuration groups lie."""

from __future__ import annotations

from pathlib import Path

import bouton


def conf_dir() -> Path:
    """The folder ``conf``: inside the package where it was installed from a wheel, else beside ``src``."""
    package = Path(bouton.__file__).resolve().parent
    packed = package / "conf"
    return packed if packed.is_dir() else package.parents[1] / "conf"


def options(group: str) -> list[str]:
    """The options of ``group`` that have a YAML in :func:`conf_dir`."""
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))
