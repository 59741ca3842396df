"""Checkpoint files: atomic writing, reading with one clear line for each thing that can be wrong, finding the last."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from omegaconf import OmegaConf

from bouton.errors import CheckpointError
from bouton.files import write_atomically

KEY = "bouton"
FORMAT = 1
LAST = "checkpoints/last.ckpt"
BEST = "checkpoints/best.ckpt"

# What makes two runs the same computation; a checkpoint goes on only where all of it agrees.
BINDING = ("mechanism", "model", "data.name", "data.seq_len", "data.tokenizer", "optimizer", "seed")
# What may differ between a run and the one it continues.
FREE = ("ckpt_path", "run_dir", "trainer.max_steps", "trainer.max_time")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its target, syncs and renames: a kill leaves the old one or the new one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        try:
            write_atomically(Path(path), lambda file: torch.save(checkpoint, file))
        except OSError as error:
            raise CheckpointError(
                f"cannot write checkpoint {path}: {error.strerror or error}; the old one is kept"
            ) from error


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint of this package onto the CPU.

    Raises:
        CheckpointError: it is missing, corrupt, truncated, or not a checkpoint of a training run.
    """
    if not path.is_file():
        raise CheckpointError(f"ckpt_path = {path}: there is no such file")
    try:
        with zipfile.ZipFile(path) as archive:  # torch does not compare the checksums that it writes
            if (bad := archive.testzip()) is not None:
                raise ValueError(f"checksum of {bad} differs")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"checkpoint {path} is corrupt or truncated and was left as it is ({reason})") from error
    if not isinstance(checkpoint, dict) or KEY not in checkpoint or "state_dict" not in checkpoint:
        raise CheckpointError(f"checkpoint {path} was not written by a training run of this package")
    found = checkpoint[KEY].get("format")
    if found != FORMAT:
        raise CheckpointError(f"checkpoint {path} has format {found!r}; this version reads format {FORMAT}")
    return checkpoint


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """A nested mapping as ``a.b.c -> leaf``; empty mappings vanish."""
    if not isinstance(config, Mapping):
        return {prefix: config}
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat.update(flatten(value, f"{prefix}.{key}" if prefix else str(key)))
    return flat


def check_compatible(checkpoint: Mapping[str, Any], config: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Refuse to continue ``checkpoint`` under another model, mechanism, vocabulary, data order or optimizer.

    Args:
        config: the resolved configuration of the present run.
        facts: what only the running program knows (``vocabulary``: fingerprint of the tokenizer; ``global_batch``).

    Raises:
        CheckpointError: names the first field that differs, and both values.
    """
    meta = checkpoint[KEY]
    saved = _parse(meta["config"])
    before, now = _names(saved.get("mechanism")), _names(config.get("mechanism"))
    if before != now:
        raise _differs("mechanism", "+".join(before) or "none", "+".join(now) or "none")
    old, new = flatten(saved), flatten(config)
    for key in sorted(set(old) | set(new)):
        if any(key == b or key.startswith(f"{b}.") for b in BINDING) and old.get(key) != new.get(key):
            raise _differs(key, old.get(key), new.get(key))
    for name, value in facts.items():
        if meta["facts"].get(name) != value:
            raise _differs(name, meta["facts"].get(name), value)


def same_run(saved: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether two resolved configurations describe the same run, up to its length and its folder."""
    old, new = ({k: v for k, v in flatten(c).items() if k not in FREE} for c in (saved, config))
    for size in ("model.vocab_size", "model.num_labels"):
        if new.get(size) is None or old.get(size) is None:
            # A run folder holds the size that the data turned out to have; a fresh configuration leaves it open.
            old.pop(size, None)
            new.pop(size, None)
    return old.keys() == new.keys() and all(_equal(old[k], new[k]) for k in old)


def find_run(root: Path, config: Mapping[str, Any]) -> Path | None:
    """The newest run folder under ``root`` with this configuration and a last checkpoint, that is not finished."""
    candidates = sorted(root.glob(f"*/{LAST}"), key=lambda p: p.stat().st_mtime, reverse=True)
    for last in candidates:
        folder = last.parent.parent
        try:
            saved = _parse((folder / "config.yaml").read_text())
        except Exception:  # whatever is wrong with that folder, it is not the run that is looked for
            continue
        if same_run(saved, config) and not _finished(folder, int(config["trainer"]["max_steps"])):
            return folder
    return None


def _finished(folder: Path, max_steps: int) -> bool:
    """Whether the run in ``folder`` has made its ``max_steps``: there is nothing to continue."""
    try:
        return int(json.loads((folder / "summary.json").read_text())["step"]) >= max_steps
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _parse(text: str) -> dict[str, Any]:
    saved = OmegaConf.to_container(OmegaConf.create(text))
    if not isinstance(saved, dict):
        raise TypeError(f"not a configuration: {type(saved).__name__}")
    return {str(key): value for key, value in saved.items()}


def _names(mechanisms: Mapping[str, Any] | None) -> list[str]:
    return sorted(mechanisms or {})


def _equal(a: Any, b: Any) -> bool:
    return a == b or (isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b))


def _differs(field: str, old: Any, new: Any) -> CheckpointError:
    return CheckpointError(
        f"{field}: the checkpoint has {old!r}, this run has {new!r}; continue with the same value, or start a new run"
    )
