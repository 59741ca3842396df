"""The weights that a fine-tuning run begins with: those of another run (``init_from``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from bouton.config.inherit import run_folder
from bouton.data.store import file_facts
from bouton.errors import CheckpointError
from bouton.runs import body_tensors, load, misfit
from bouton.training.checkpoints import KEY, read_checkpoint

RECORD = "init_from.json"  # in the run folder


def load_start(body: nn.Module, init_from: str) -> dict[str, Any]:
    """Load the weights and the organism state of a run into ``body``.

    Args:
        init_from: a run folder (its best checkpoint), or a checkpoint file in one.

    Returns:
        Where they come from: ``run``, ``checkpoint``, ``sha256``, ``step``.

    Raises:
        ConfigError: it is no run folder.
        CheckpointError: the checkpoint is missing or corrupt, or has other tensors than the body.
    """
    path = Path(init_from).expanduser()
    folder = run_folder(init_from)
    file = path if path.is_file() else load(folder).checkpoint
    checkpoint = read_checkpoint(file)
    tensors = body_tensors(checkpoint)
    if problem := misfit(body, tensors):
        raise CheckpointError(
            f"init_from = {init_from}: {file.name} does not fit this model: {problem}; give init_from on the command "
            f"line and leave model and mechanism as they are in that run"
        )
    body.load_state_dict(tensors)
    return {
        "run": str(folder.resolve()),
        "checkpoint": file.name,
        "sha256": file_facts(file)["sha256"],
        "step": int(checkpoint[KEY]["step"]),
    }
