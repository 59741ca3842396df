"""Pictures of the mechanisms' state and sample texts while a run trains: ``media/`` and ``samples.jsonl``."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from bouton.errors import BoutonError
from bouton.files import write_text
from bouton.mechanisms.drawing import draw_picture
from bouton.mechanisms.pictures import collect
from bouton.training.loggers import log_pictures, log_sample
from bouton.training.module import TrainingModule
from bouton.training.random_state import get_random_state, set_random_state

log = logging.getLogger("bouton.training")
SAMPLES = "samples.jsonl"
FOLDER = "media"


class Media(Callback):
    """At every ``every``-th validation reads the first validation sequence token by token, draws and samples.

    Rank 0 does it alone, between validation batches, so that no timing of training counts it; the generators are as
    before, so that a run with pictures trains like one without.

    Args:
        folder: the run folder.
        every: validations between two sets of pictures.
        tokens: length of the sequence that is drawn.
        sample_tokens: length of the sample text; None: no sample.
        tokenizer: of the run.
        seed: of the sample.
    """

    def __init__(
        self, folder: Path, *, every: int, tokens: int, sample_tokens: int | None, tokenizer: Any, seed: int
    ) -> None:
        self.folder = folder
        self.every = every
        self.tokens = tokens
        self.sample_tokens = sample_tokens
        self.tokenizer = tokenizer
        self.seed = seed
        self._validations = 0

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        if batch_idx or dataloader_idx or trainer.sanity_checking:
            return
        due = self._validations % self.every == 0
        self._validations += 1
        if not due or not trainer.is_global_zero:
            return
        before = get_random_state()
        try:
            # One token at a time has other shapes than training: no compiled graph is made for it.
            with torch.no_grad(), torch.compiler.set_stance("force_eager"):
                step = trainer.global_step
                row = {name: value[:1, : self.tokens] for name, value in batch.items() if name in ("tokens", "starts")}
                self._draw(trainer, pl_module, row, step)
                self._sample(trainer, pl_module, step)
        finally:
            set_random_state(before)

    def _draw(self, trainer: lightning.Trainer, module: TrainingModule, row: Mapping[str, Tensor], step: int) -> None:
        pictures = collect(module.body, row["tokens"], row.get("starts"))
        files: dict[str, Path] = {}
        for name, picture in pictures.items():
            files[name] = draw_picture(picture, f"{name}, step {step}", self.folder / FOLDER / name / f"{step:08d}.png")
        log_pictures(trainer.loggers, files, step)

    def _sample(self, trainer: lightning.Trainer, module: TrainingModule, step: int) -> None:
        if self.sample_tokens is None or getattr(self.tokenizer, "kind", None) in (None, "integers"):
            return
        text = sample_text(module.body, self.tokenizer, self.sample_tokens, self.seed)
        if text is not None:
            add_sample(self.folder, step, text)
            log_sample(trainer.loggers, text, step)

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validations = int(state_dict["validations"])


def sample_text(body: Any, tokenizer: Any, tokens: int, seed: int) -> str | None:
    """A text of up to ``tokens`` tokens that the body makes up; None where it cannot."""
    from bouton.generation import Sampling, generate

    sampling = Sampling(temperature=0.8, top_k=50)
    try:
        return generate(body, tokenizer, [""], max_new_tokens=tokens, sampling=sampling, seed=seed)[0].text
    except BoutonError as error:
        log.warning("no sample: %s", error)
        return None


def add_sample(folder: Path, step: int, text: str) -> None:
    """Add a line to ``samples.jsonl``; those of this step and of later ones, which a resume repeats, are replaced."""
    kept = [line for line in read_samples(folder) if line["step"] < step]
    lines = [*kept, {"step": step, "text": text}]
    write_text(folder / SAMPLES, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def read_samples(folder: Path) -> list[dict[str, Any]]:
    """The sample texts of a run: ``step`` and ``text``, oldest first."""
    try:
        lines = (folder / SAMPLES).read_text().splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if line.strip()]
