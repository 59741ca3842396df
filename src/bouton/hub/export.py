"""From a run folder to a folder of Hugging Face's kind, and back."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from transformers import GenerationConfig
from transformers.utils import logging

from bouton.errors import CheckpointError, ConfigError, DataError
from bouton.files import write_text
from bouton.hub.modeling import BoutonConfig, BoutonForCausalLM
from bouton.hub.tokenizer import fast_tokenizer
from bouton.runs import Run, load, pick_device

# Lets transformers find the classes in a process that has not imported bouton.hub (trust_remote_code=True).
_REMOTE = '''"""The classes of this model are in the package bouton."""

from bouton.hub.modeling import BoutonConfig, BoutonForCausalLM
'''
_AUTO_MAP = {"AutoConfig": "modeling_bouton.BoutonConfig", "AutoModelForCausalLM": "modeling_bouton.BoutonForCausalLM"}


def save_pretrained(run: Run | str | Path, folder: str | Path) -> Path:
    """Write a run's model and tokenizer so that transformers loads them; returns the folder.

    Files: ``config.json``, ``model.safetensors``, ``generation_config.json``, ``tokenizer.json``,
    ``tokenizer_config.json``, ``modeling_bouton.py``. The folder appears whole or not at all.

    Raises:
        DataError: the folder holds something else, or cannot be written.
    """
    run = load(run, device="cpu") if isinstance(run, str | Path) else run
    if run.model.num_labels is not None:
        raise ConfigError(f"run = {run.folder} labels tokens: only language models can be exported")
    if run.model.learns_locally or run.tokenizer.kind == "words":
        what = (
            "its model is no network of tensors"
            if run.model.learns_locally
            else "its tokenizer of words is not lossless"
        )
        raise ConfigError(
            f"run = {run.folder} cannot be exported: {what}; the run folder itself is what others can load"
        )
    folder = Path(folder).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"to = {folder} is not empty: choose a new folder")
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        with _quiet():
            pretrained(run).save_pretrained(partial)
            fast_tokenizer(run.tokenizer).save_pretrained(partial)
        write_text(partial / "modeling_bouton.py", _REMOTE)
        for file in partial.iterdir():
            file.chmod(0o644)
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    except OSError as error:
        raise DataError(f"to = {folder} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def pretrained(run: Run) -> BoutonForCausalLM:
    """The run's model as a transformers model, with copies of its tensors, on the CPU."""
    body = run.model
    described: dict[str, Any] = {
        name: OmegaConf.to_container(run.config[name], resolve=True) for name in ("model", "mechanism")
    }
    described["model"]["vocab_size"] = body.vocab_size
    eot = run.tokenizer.eot_id
    config = BoutonConfig(
        **described,
        seed=int(run.config.get("seed") or 0),
        bos_token_id=eot,
        eos_token_id=eot,
        pad_token_id=eot,
        auto_map=_AUTO_MAP,
        architectures=["BoutonForCausalLM"],
    )
    model = BoutonForCausalLM(config)
    model.body.load_state_dict(body.state_dict())
    model.generation_config = GenerationConfig(bos_token_id=eot, eos_token_id=eot, pad_token_id=eot)
    model.eval()
    return model


def from_pretrained(folder: str | Path, device: str | torch.device | None = None, **options: Any) -> BoutonForCausalLM:
    """Load what :func:`save_pretrained` wrote (or a hub repository with the same content), in evaluation mode.

    Args:
        device: as in :func:`bouton.load`.
        options: of ``PreTrainedModel.from_pretrained``, for instance ``dtype``.

    Raises:
        CheckpointError: there is no such model, or the file lacks tensors.
    """
    try:
        with _quiet():
            model, info = BoutonForCausalLM.from_pretrained(str(folder), output_loading_info=True, **options)
    except OSError as error:
        raise CheckpointError(f"{folder} is no exported model: {str(error).strip().splitlines()[0]}") from error
    if missing := sorted(info["missing_keys"]):
        raise CheckpointError(f"{folder} lacks {missing[0]}" + (f" and {len(missing) - 1} more" * (len(missing) > 1)))
    found: BoutonForCausalLM = model.to(pick_device(device)).eval()
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars, which say nothing about a model of one file."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
