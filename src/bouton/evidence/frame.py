"""``bouton.evidence.load``: the runs of a folder as a table, and their learning curves."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from bouton.errors import DataError
from bouton.evidence.arms import RECORD, Arm, name_arms, read_record

FINISHED, CRASHED, UNFINISHED = "finished", "crashed", "unfinished"
STATUS = "status.json"
TRACEBACK = "traceback.txt"
_COSTS = (
    "parameters", "training_flops_per_token", "training_flops", "tokens", "tokens_per_second", "train_seconds",
    "wall_seconds", "peak_memory_bytes", "energy_joules", "devices", "device",
)  # fmt: skip


def load(folder: str | Path) -> pd.DataFrame:
    """The runs in ``folder`` (a sweep, or a single run), one row each, sorted by arm and seed, the baseline first.

    Columns: ``run`` (name of its folder), ``arm``, ``mechanism``, ``overrides``, ``control``, ``of``, ``seed``,
    ``status`` (finished, crashed, unfinished), ``ended`` (finished, stopped early, time limit reached), ``error``,
    ``step``, ``final_*`` and ``best_*`` metrics, the costs ``parameters``, ``training_flops_per_token``,
    ``training_flops``, ``tokens``, ``tokens_per_second``, ``train_seconds``, ``wall_seconds`` [s],
    ``peak_memory_bytes``, ``energy_joules``, ``devices``, ``device``, and ``folder`` (its path). A cell that a run
    does not have is NaN or None.

    Raises:
        DataError: there is no such folder, or no run in it.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise DataError(f"folder = {root}: there is no such folder")
    folders = [root] if is_run(root) else sorted(path for path in root.iterdir() if path.is_dir() and is_run(path))
    if not folders:
        sweeps = sorted(p.name for p in root.iterdir() if p.is_dir() and any(is_run(q) for q in p.iterdir()))
        hint = f"; sweeps in it: {', '.join(sweeps[:8])}" if sweeps else ""
        raise DataError(f"folder = {root} holds no run{hint}")
    configs = [read_config(path) for path in folders]
    records = [read_record(path) for path in folders]
    # Runs that a grid has made say their arm themselves, so that the others must not be told apart from controls.
    derived = iter(name_arms([config for config, record in zip(configs, records, strict=True) if record is None]))
    arms = [record or next(derived) for record in records]
    rows = [_row(*run) for run in zip(folders, configs, arms, strict=True)]
    frame = pd.DataFrame(rows)
    lead = frame["mechanism"].ne("none") + 2 * frame["control"].notna()
    terms = frame["mechanism"].str.count(r"\+")
    order = frame.assign(_lead=lead, _terms=terms).sort_values(["_lead", "_terms", "arm", "seed", "run"], kind="stable")
    frame = frame.loc[order.index]
    return frame[[*(name for name in frame if name != "folder"), "folder"]].reset_index(drop=True)


def curves(frame: pd.DataFrame) -> pd.DataFrame:
    """The validations of the runs of :func:`load`: ``arm``, ``seed``, ``step``, ``tokens``, then ``val/...``.

    ``tokens`` counts the training tokens seen at that step. Runs without validations have no rows.
    """
    parts = []
    for run in frame.to_dict("records"):
        table = metrics_table(Path(run["folder"]))
        names = [name for name in map(str, table) if name.startswith("val/")]
        table = table[["step", *names]].dropna(how="all", subset=names) if names else table.iloc[:0]
        if table.empty:
            continue
        per_step = run["tokens"] / run["step"] if run["step"] and not pd.isna(run["tokens"]) else math.nan
        lead = {"arm": run["arm"], "seed": run["seed"]}
        parts.append(table.assign(**lead, tokens=table["step"] * per_step)[[*lead, "step", "tokens", *names]])
    if not parts:
        return pd.DataFrame(columns=["arm", "seed", "step", "tokens"])
    return pd.concat(parts, ignore_index=True)


def metrics_table(folder: Path) -> pd.DataFrame:
    """``metrics.csv`` of a run folder; empty where there is none yet."""
    try:
        return pd.read_csv(folder / "metrics.csv")
    except (FileNotFoundError, pd.errors.EmptyDataError):
        return pd.DataFrame({"step": []})
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / 'metrics.csv'} cannot be read: {error}") from error


def is_run(folder: Path) -> bool:
    """Whether a training run has begun in ``folder``."""
    if folder.name.startswith(".") or not folder.is_dir():
        return False
    return any((folder / name).is_file() for name in ("config.yaml", RECORD, STATUS, ".hydra/config.yaml"))


def read_summary(folder: Path) -> dict[str, Any] | None:
    """``summary.json``, which a run writes at its end; None before."""
    return _read_json(folder / "summary.json")


def status_of(folder: Path) -> str:
    """``finished``, ``crashed``, or ``unfinished`` (under way, interrupted or killed)."""
    if read_summary(folder) is not None:
        return FINISHED
    record = _read_json(folder / STATUS)
    return CRASHED if record is not None and record.get("status") == CRASHED else UNFINISHED


def read_config(folder: Path) -> dict[str, Any]:
    """The resolved configuration of a run; of one that has not come so far, what Hydra composed."""
    for path in (folder / "config.yaml", folder / ".hydra" / "config.yaml"):
        if not path.is_file():
            continue
        try:
            content = OmegaConf.to_container(OmegaConf.load(path))
        except Exception as error:  # omegaconf passes on whatever the YAML parser raises
            raise DataError(f"{path} cannot be read: {' '.join(str(error).split())[:160]}") from error
        if isinstance(content, dict):
            return {str(key): value for key, value in content.items()}
    return {}


def _row(folder: Path, config: Mapping[str, Any], arm: Arm) -> dict[str, Any]:
    summary, status = read_summary(folder) or {}, status_of(folder)
    failure = (_read_json(folder / STATUS) or {}) if status == CRASHED else {}
    seed = config.get("seed", failure.get("seed"))
    row: dict[str, Any] = {
        "run": folder.name,
        "arm": arm.label,
        "mechanism": arm.mechanism,
        "overrides": arm.overrides,
        "control": arm.control,
        "of": arm.of,
        "seed": int(seed) if seed is not None else -1,
        "status": status,
        "ended": summary.get("status"),
        "error": failure.get("error"),
        "step": summary.get("step"),
    }
    for part in ("final", "best"):
        row.update({f"{part}_{name}": value for name, value in (summary.get(part) or {}).items()})
    costs = summary.get("costs") or {}
    row.update({name: costs.get(name) for name in _COSTS})
    row["folder"] = str(folder)
    return row


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {' '.join(str(error).split())[:160]}") from error
    return content if isinstance(content, dict) else None
