"""Where a search works: the folder that was asked for, or the one where the same search was cut off."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from bouton.errors import ConfigError
from bouton.sweeps.journal import NAME, Journal, plain


def find_folder(config: DictConfig, cfg: DictConfig, header: Mapping[str, Any]) -> tuple[Path, bool]:
    """The folder of the search, and whether it is a new one.

    A folder that the command names is taken, and must belong to the same search. Otherwise the newest unfinished one of
    the same search beside the folder that Hydra would make is gone on with.

    Raises:
        ConfigError: the named folder holds another search.
    """
    folder = Path(str(config.hydra.sweep.dir)).resolve()
    named = cfg.get("run_dir") is not None or any("hydra.sweep.dir=" in word for word in config.hydra.overrides.hydra)
    wanted = plain(header)
    found = _header(folder)
    if found is not None:
        for key in wanted:
            if found.get(key) != wanted[key]:
                raise ConfigError(
                    f"run_dir = {folder} holds another search ({_difference(key, found.get(key), wanted[key])}): "
                    "choose another folder, or the same words"
                )
        return folder, False
    if not named:
        for path in sorted(folder.parent.glob(f"*/{NAME}"), key=lambda p: p.stat().st_mtime, reverse=True):
            other = _header(path.parent)
            if other is not None and all(other.get(key) == wanted[key] for key in wanted) and not _ended(path):
                return path.parent, False
    return folder, True


def _header(folder: Path) -> dict[str, Any] | None:
    journal = Journal(folder / NAME)
    journal.refresh()
    headers = journal.of_kind("header")
    return headers[0] if headers else None


def _ended(path: Path) -> bool:
    journal = Journal(path)
    journal.refresh()
    return bool(journal.of_kind("end"))


def _difference(key: str, old: Any, new: Any) -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in new:
            if old.get(name) != new[name]:
                return _difference(name, old.get(name), new[name])
    short = [str(value) if len(str(value)) < 60 else f"{str(value)[:60]}..." for value in (old, new)]
    return f"{key}: {short[0]} there, {short[1]} here"
