"""One DataModule for all data: an endless training stream, fixed validation rows, sharded and exactly resumable."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from lightning import LightningDataModule
from numpy.typing import NDArray
from rich.console import Console

from bouton.data.chat import ChatTemplate
from bouton.data.chat_rows import ChatRows
from bouton.data.packing import IGNORED, Batch, PackedRows
from bouton.data.sampler import sample_indices, training_rows
from bouton.data.store import TokenStore, open_store
from bouton.data.tokenizers import Tokenizer
from bouton.errors import CheckpointError, ConfigError, DataError

_STEPS_AHEAD = 64


class NumberedRows(Protocol):
    """Rows of equal length, each with a number."""

    def gather(self, rows: NDArray[np.int64]) -> Batch:
        """{"tokens": (B, T) int64, "targets": (B, T) int64, "starts": (B, T) bool}; -1 gives an ignored row."""
        ...


class Rows(NumberedRows, Protocol):
    """A finite table of rows."""

    seq_len: int

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Prepared:
    """What a data set provides once it is prepared.

    Attributes:
        folder: parent of the stores of the splits, or None where rows are generated.
        rows: split -> rows, where they are generated; empty otherwise.
        sources: name -> parent of its stores, where several texts are mixed; empty otherwise.
    """

    tokenizer: Tokenizer
    fingerprint: str
    folder: Path | None
    rows: dict[str, Rows]
    sources: dict[str, Path] = field(default_factory=dict)


class TokenDataModule(LightningDataModule):
    """Batches ``{"tokens", "targets", "starts"}`` of (B, T); targets of -100 are ignored. Those of training also have
    ``samples`` (B,), the number of each row in the stream of all ranks.

    Training is an endless stream. Sample ``s W B + r B + b`` goes to slot b of rank r in step s, so W ranks with B
    see what one rank with W B sees, and its content is a pure function of (seed, sample). Validation and
    test rows are fixed, the same for every seed, and each is seen by one rank once; the ranks get equally many batches
    of B rows, the last ones completed by rows whose targets are all -100.
    """

    def __init__(
        self,
        prepare: Callable[[], Prepared],
        *,
        name: str,
        seq_len: int,
        batch_size: int,
        val_tokens: int | None,
        seed: int,
        label_names: tuple[str, ...] = (),
        label_weights: tuple[float, ...] | None = None,
    ) -> None:
        """
        Args:
            prepare: makes or finds the data; safe to call in several processes at once.
            batch_size: rows of one device.
            val_tokens: use that many validation tokens at most, taken evenly from all; None for all.
            label_names: what the targets are numbers of, where they are no tokens; () where they are.
            label_weights: of each label in the loss of training; None: all 1.
        """
        super().__init__()
        self.name = name
        self.seq_len = seq_len
        self.batch_size = batch_size
        self.seed = seed
        self.label_names = label_names
        self.label_weights = label_weights
        self._val_tokens = val_tokens
        self._prepare = prepare
        self._prepared: Prepared | None = None
        self._rows: dict[str, Rows] = {}
        self._base_samples = 0  # samples consumed, and batches done, when this run began
        self._base_batches = 0
        self._batches = 0  # batches given out, where there is no trainer to ask

    # -- preparation ---------------------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Write the token files unless they are there. Lightning calls this on one process of each machine."""
        self.prepared  # noqa: B018

    @property
    def prepared(self) -> Prepared:
        if self._prepared is None:
            self._prepared = self._prepare()
        return self._prepared

    def setup(self, stage: str | None = None) -> None:
        """Open and check the splits.

        Raises:
            DataError: token files are corrupt.
            ConfigError: a row is longer than a split.
        """
        for split in ("train", "val", "test"):
            if split not in self._rows:
                rows = self._open(split)
                if rows is not None:
                    self._rows[split] = rows

    def _open(self, split: str) -> Rows | None:
        folder = self.prepared.folder
        if folder is None:
            return self.prepared.rows.get(split)
        if split == "test" and not (folder / split).is_dir():
            return None
        store = self.open_store(folder, split)
        if store.spans is not None:
            return self._conversations(ChatRows(store, self.seq_len, ChatTemplate(self.tokenizer)), split)
        return self._packed(store, split, f"data={self.name}")

    def open_store(self, folder: Path, split: str) -> TokenStore:
        """A split of ``folder``, checked to be written by this tokenizer."""
        store = open_store(folder / split)
        if store.meta["tokenizer"]["fingerprint"] != self.tokenizer.fingerprint:
            raise DataError(f"the token files at {folder} were made by another tokenizer: delete them and run again")
        return store

    def _packed(self, store: TokenStore, split: str, origin: str) -> PackedRows:
        if len(store) <= self.seq_len:
            raise ConfigError(
                f"data.seq_len={self.seq_len} is longer than the {split} split of {origin} "
                f"({len(store)} tokens); at most {len(store) - 1}"
            )
        return PackedRows(store, self.seq_len)

    def _conversations(self, rows: ChatRows, split: str) -> ChatRows:
        if not len(rows):
            raise ConfigError(
                f"data.seq_len={self.seq_len} is too short: in no conversation of the {split} split of "
                f"data={self.name} an answer begins within it"
            )
        if self.ranks()[0] == 0:
            Console(stderr=True, soft_wrap=True, highlight=False).print(f"data={self.name}, {split}: {rows.note}")
        return rows

    @property
    def tokenizer(self) -> Tokenizer:
        """Prepares the data if that has not happened: BPE is trained on them."""
        return self.prepared.tokenizer

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    @property
    def fingerprint(self) -> str:
        """Hash of the tokens that are trained on."""
        return self.prepared.fingerprint

    # -- loaders -------------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> TrainLoader:
        return TrainLoader(self)

    def val_dataloader(self) -> FixedLoader | list[FixedLoader]:
        return FixedLoader(self, self.rows("val"), self.fixed_rows("val"))

    def test_dataloader(self) -> FixedLoader:
        """The test split where the data have one, else the validation split."""
        self.setup()
        split = "test" if "test" in self._rows else "val"
        return FixedLoader(self, self.rows(split), self.fixed_rows(split))

    def rows(self, split: str) -> Rows:
        """All rows of a split."""
        self.setup()
        return self._rows[split]

    def fixed_rows(self, split: str) -> NDArray[np.int64]:
        """The row numbers of an evaluation: all, or as many as ``val_tokens`` admits, evenly spaced."""
        total = len(self.rows(split))
        count = total if self._val_tokens is None else min(total, max(1, self._val_tokens // self.seq_len))
        return np.arange(count, dtype=np.int64) * total // count

    def evaluation_bytes(self, split: str = "val") -> int:
        """UTF-8 bytes of all targets of an evaluation, over all ranks; 0 for tasks without text and for labels."""
        if self.label_names:
            return 0
        rows, fixed = self.rows(split), self.fixed_rows(split)
        total = 0
        for begin in range(0, len(fixed), 256):
            targets = rows.gather(fixed[begin : begin + 256])["targets"].numpy()
            total += int(self.tokenizer.token_bytes[targets[targets != IGNORED]].sum())
        return total

    def ranks(self) -> tuple[int, int]:
        """(rank, world size): from the trainer, else from ``torch.distributed``, else one process."""
        if self.trainer is not None:
            return int(self.trainer.global_rank), int(self.trainer.world_size)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1

    def pins_memory(self) -> bool:
        """Whether batches go to a CUDA device, so that their copy can overlap with computing."""
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    # -- state ---------------------------------------------------------------------------------------------------------

    @property
    def batches_consumed(self) -> int:
        """Training batches (of this rank) whose step is done, over all resumed runs."""
        if self.trainer is not None:
            # processed, not completed: a checkpoint written at the end of a batch must count that batch
            return int(vars(self.trainer.fit_loop.epoch_loop.batch_progress.total)["processed"])
        return self._batches

    @property
    def samples_consumed(self) -> int:
        """Training samples of all ranks whose step is done: where the stream goes on."""
        return self._base_samples + (self.batches_consumed - self._base_batches) * self.ranks()[1] * self.batch_size

    def train_batch(self, step: int) -> Batch:
        """This rank's batch number ``step``, counted as :attr:`batches_consumed` is."""
        samples = self.training_samples(step, 1)
        return self._training_batch(samples[0], self.training_rows(samples)[0])

    def training_samples(self, step: int, count: int) -> NDArray[np.int64]:
        """(count, B) samples of the training stream in this rank's batches ``step``, ``step + 1``, ..."""
        rank, world_size = self.ranks()
        steps = range(step - self._base_batches, step - self._base_batches + count)
        return np.stack([sample_indices(s, rank, world_size, self.batch_size, self._base_samples) for s in steps])

    def training_rows(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """The row that each of these samples reads."""
        return training_rows(samples.reshape(-1), len(self.rows("train")), self.seed).reshape(samples.shape)

    def _training_batch(self, samples: NDArray[np.int64], rows: NDArray[np.int64]) -> Batch:
        return {**self.rows("train").gather(rows), "samples": torch.from_numpy(samples.copy())}

    def state_dict(self) -> dict[str, Any]:
        return {
            "batches_consumed": self.batches_consumed,
            "samples_consumed": self.samples_consumed,
            "fingerprint": self.fingerprint,
            "tokenizer": self.tokenizer.fingerprint,
            "vocab_size": self.vocab_size,
            "seq_len": self.seq_len,
            "seed": self.seed,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint stopped, also with another number of ranks or another batch size.

        Raises:
            CheckpointError: the checkpoint was trained on other tokens or in another order.
        """
        self.check_state(state_dict)
        self._base_batches = self._batches = int(state_dict["batches_consumed"])
        self._base_samples = int(state_dict["samples_consumed"])

    def check_state(self, state_dict: dict[str, Any]) -> None:
        """Raise CheckpointError, in one clear line, unless training can go on from this state."""
        if state_dict["vocab_size"] != self.vocab_size:
            raise CheckpointError(
                f"the checkpoint has a vocabulary of {state_dict['vocab_size']} tokens, data={self.name} one of "
                f"{self.vocab_size}: resume with the data and tokenizer of the first run"
            )
        if state_dict["tokenizer"] != self.tokenizer.fingerprint:
            raise CheckpointError(f"the checkpoint was trained with another tokenizer than that of data={self.name}")
        if state_dict["fingerprint"] != self.fingerprint:
            raise CheckpointError(f"the checkpoint was trained on other text than data={self.name} holds now")
        for name, value in (("data.seq_len", self.seq_len), ("seed", self.seed)):
            before = state_dict[name.removeprefix("data.")]
            if before != value:
                raise CheckpointError(f"{name}={value}: the checkpoint was trained with {before}, so the order differs")


class TrainLoader:
    """The endless training stream, beginning where training stands. Not a DataLoader: a gather needs no workers."""

    def __init__(self, module: TokenDataModule) -> None:
        self._module = module

    def __iter__(self) -> Iterator[Batch]:
        module = self._module
        step = module.batches_consumed
        pin = module.pins_memory()
        while True:
            # the order of many steps at once: the permutation costs the same for one batch as for dozens
            samples = module.training_samples(step, _STEPS_AHEAD)
            for drawn, rows in zip(samples, module.training_rows(samples), strict=True):
                step += 1
                module._batches = step
                batch = module._training_batch(drawn, rows)
                yield _pinned(batch) if pin else batch


class FixedLoader:
    """This rank's share of fixed rows."""

    def __init__(self, module: TokenDataModule, rows: NumberedRows, fixed: NDArray[np.int64]) -> None:
        self._module = module
        self._rows = rows
        self._fixed = fixed

    def __len__(self) -> int:
        """Batches, equal on all ranks."""
        return math.ceil(len(self._fixed) / (self._module.ranks()[1] * self._module.batch_size))

    def __iter__(self) -> Iterator[Batch]:
        rank, world_size = self._module.ranks()
        pin = self._module.pins_memory()
        for step in range(len(self)):
            index = sample_indices(step, rank, world_size, self._module.batch_size)
            last = len(self._fixed) - 1
            batch = self._rows.gather(np.where(index <= last, self._fixed[np.minimum(index, last)], -1))
            yield _pinned(batch) if pin else batch


def _pinned(batch: Batch) -> Batch:
    return {name: tensor.pin_memory() for name, tensor in batch.items()}
