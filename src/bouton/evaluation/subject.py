"""The run under evaluation, and what several tasks need of it: validation rows, documents, precision, progress."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from bouton.data.tokenizers import Tokenizer
from bouton.errors import BoutonError, DataError, EvaluationError
from bouton.generation.decode import position_limit

if TYPE_CHECKING:
    from bouton.data.module import Rows, TokenDataModule
    from bouton.data.packing import Batch
    from bouton.data.store import TokenStore
    from bouton.models.body import Body
    from bouton.runs import Run

PRECISIONS = ("run", "float32")
AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
X = TypeVar("X")


class Subject:
    """A loaded run as the tasks see it. Everything is made when it is first asked for.

    Attributes:
        run: the run.
        precision: ``run`` computes as the run's own validation did, ``float32`` in float32 throughout.
    """

    def __init__(
        self,
        run: Run,
        *,
        precision: str = "run",
        data_path: str | None = None,
        cache_dir: str | None = None,
        progress: bool = False,
    ) -> None:
        self.run = run
        self.precision = precision
        self._moved = {"path": data_path, "cache_dir": cache_dir}
        self._progress = progress

    @property
    def model(self) -> Body:
        return self.run.model

    @property
    def tokenizer(self) -> Tokenizer:
        return self.run.tokenizer

    @cached_property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def seq_len(self) -> int:
        """Tokens of a training row."""
        return int(self.run.config.data.seq_len)

    @property
    def batch_size(self) -> int:
        """Rows of a training batch of one device."""
        return int(self.run.config.data.batch_size)

    @property
    def position_limit(self) -> int | None:
        """The number of positions that the body can represent; None: it has no end."""
        return position_limit(self.model)

    @property
    def is_text(self) -> bool:
        """Whether the run has learned to continue text (and not the integers of a synthetic task, nor labels)."""
        return self.tokenizer.kind != "integers" and self.model.num_labels is None

    def require_text(self, task: str) -> None:
        """Raise EvaluationError unless the run has learned to continue text."""
        if self.model.num_labels is not None:
            raise EvaluationError(f"task {task} needs a run that continues text, this one labels tokens")
        if not self.is_text:
            raise EvaluationError(
                f"task {task} needs a run that was trained on text, this one has data={self.run.config.data.name}"
            )

    # -- data ----------------------------------------------------------------------------------------------------------

    @cached_property
    def data(self) -> TokenDataModule:
        """The run's data, checked to be those it was trained with.

        Raises:
            DataError: they are gone, or they are others now.
        """
        from omegaconf import OmegaConf

        from bouton.data.build import build_datamodule

        config: Any = OmegaConf.to_container(self.run.config.data, resolve=True)
        if (config.get("tokenizer") or {}).get("kind") == "saved":  # the run it comes from may be gone
            config["tokenizer"] = {"kind": "saved", "path": str(self.run.folder / "tokenizer")}
        config.update({name: value for name, value in self._moved.items() if value is not None})
        module = build_datamodule(config, int(self.run.config.get("seed") or 0))
        try:
            module.setup()
        except DataError as error:
            raise DataError(
                f"the validation data of {self.run.folder} cannot be read: {error}; data that moved are named with "
                f"data_path=... and cache_dir=..."
            ) from None
        trained = self.run.data_fingerprint
        if module.tokenizer.fingerprint != self.tokenizer.fingerprint or trained not in (None, module.fingerprint):
            raise DataError(
                f"data={config['name']} gives other tokens now than those {self.run.folder} was trained on: the text "
                f"or its tokenizer has changed; name the old text with data_path=..."
            )
        return module

    @property
    def rows(self) -> Rows:
        """All validation rows."""
        return self.data.rows("val")

    @cached_property
    def validation_rows(self) -> NDArray[np.int64]:
        """The numbers of the rows that training validated with."""
        fixed = self.data.fixed_rows("val")
        limit = self.run.config.get("trainer", {}).get("val_batches")
        if limit is None:
            return fixed
        return fixed[: int(limit) * self.batch_size * self._trained_on("devices", 1)]

    @cached_property
    def store(self) -> TokenStore:
        """The validation text as documents of tokens."""
        from bouton.data.store import open_store

        folder = self.data.prepared.folder
        if folder is None:
            raise EvaluationError(f"data={self.run.config.data.name} has no documents")
        return open_store(folder / "val")

    def batches(self, rows: NDArray[np.int64], what: str) -> Iterator[Batch]:
        """The batches of these rows on the device, of the run's batch size (the last may be shorter)."""
        size = self.batch_size
        for begin in self.track(range(0, len(rows), size), what):
            yield {name: t.to(self.device) for name, t in self.rows.gather(rows[begin : begin + size]).items()}

    # -- computing -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """No gradients, and the precision that was asked for."""
        kind = AUTOCAST.get(self.precision_name)
        with torch.inference_mode(), torch.autocast(self.device.type, dtype=kind, enabled=kind is not None):
            yield

    @property
    def precision_name(self) -> str:
        """The arithmetic by its name in ``trainer.precision``."""
        if self.precision == "float32":
            return "32-true"
        trained = str(self.run.config.get("trainer", {}).get("precision", "32-true"))
        if trained == "auto":
            trained = "bf16-mixed" if self._trained_on("device", "cpu") == "cuda" else "32-true"
        return trained if trained in AUTOCAST else "32-true"

    def _trained_on(self, fact: str, default: Any) -> Any:
        """A fact about the training machine, if the run has finished and told it."""
        try:
            return self.run.summary["costs"][fact]
        except (BoutonError, KeyError, TypeError):
            return default

    def track(self, items: Iterable[X], what: str) -> Iterator[X]:
        """``items`` with a progress bar on the terminal, if there is one."""
        console = Console(stderr=True)
        shown = self._progress and console.is_terminal
        return iter(track(items, description=what, console=console, transient=True, disable=not shown))


def fingerprint(model: nn.Module) -> str:
    """A hash of every parameter and every buffer, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted([*model.named_parameters(), *model.named_buffers()]):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
