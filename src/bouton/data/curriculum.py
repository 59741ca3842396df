"""Several texts in proportions that change from phase to phase, behind the interface of every other data set."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bouton.data.module import FixedLoader, Prepared, Rows, TokenDataModule
from bouton.data.packing import Batch
from bouton.data.phases import Part, Phase, PhaseRows, phase_parts, pieces_of_store, shares
from bouton.errors import CheckpointError

_VALIDATION_SEED = 0  # of the order of a phase's own validation rows: the same for every seed of a run


class CurriculumDataModule(TokenDataModule):
    """Training rows of the present phase, one fixed mixed validation set, and the phase's own validation set.

    The present phase is that of the last sample consumed: :meth:`enter` says from which sample on the next one holds,
    and these places are part of the state. The stream of all ranks is therefore a pure function of (seed, sample,
    phase), and a resumed run reads what the uninterrupted one reads.

    Two validation loaders: the first has rows of ``seq_len`` tokens of all sources in fixed proportions, the same in
    all phases and for all seeds; the second (``extra_validation``) the first rows of the present phase's stream over
    the held-out text: its sources, its pieces.
    """

    extra_validation = ("phase",)

    def __init__(
        self,
        prepare: Callable[[], Prepared],
        *,
        name: str,
        seq_len: int,
        batch_size: int,
        val_tokens: int,
        seed: int,
        phases: Sequence[Phase],
        replay: float,
        val_weights: Mapping[str, float],
        phase_val_tokens: int,
    ) -> None:
        """
        Args:
            val_tokens: of the fixed mixed set; less where a source has fewer held out than its share.
            replay: share of the rows that come from earlier phases.
            val_weights: source -> share of the fixed mixed set.
            phase_val_tokens: of the present phase's own set.
        """
        super().__init__(
            prepare, name=name, seq_len=seq_len, batch_size=batch_size, val_tokens=val_tokens, seed=seed
        )  # fmt: skip
        self.phases = tuple(phases)
        self.replay = replay
        self.val_weights = dict(val_weights)
        self._mixed_tokens = val_tokens
        self._phase_rows = max(1, phase_val_tokens // seq_len)
        self._phase_starts = [0]  # the first sample of each phase that was entered
        self._streams: dict[tuple[str, int], PhaseRows] = {}

    # -- phases --------------------------------------------------------------------------------------------------------

    @property
    def phase(self) -> int:
        """Index of the phase of the last sample consumed."""
        return self.phase_of(max(0, self.samples_consumed - 1))

    def phase_of(self, sample: int) -> int:
        return bisect_right(self._phase_starts, sample) - 1

    @property
    def last_entered(self) -> int:
        """Index of the latest phase that :meth:`enter` has named, though its first sample may still be ahead."""
        return len(self._phase_starts) - 1

    def enter_next(self, sample: int) -> None:
        """The phase after the latest one begins with this sample of all ranks, none of which was handed out yet."""
        rank_batches = self._batches - self._base_batches
        handed_out = self._base_samples + rank_batches * self.ranks()[1] * self.batch_size
        if sample < max(handed_out, self._phase_starts[-1] + 1) or self.last_entered + 1 >= len(self.phases):
            raise ValueError(f"phase {self.last_entered + 1} cannot begin at sample {sample}")
        self._phase_starts.append(sample)

    # -- rows ----------------------------------------------------------------------------------------------------------

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        for index in range(len(self.phases)):  # what is wrong with a later phase is said before the first begins
            for split in ("train", "val"):
                self._stream(split, index)

    def _open(self, split: str) -> Rows | None:
        if split == "test":
            return None
        rows = [
            self._packed(self.open_store(folder, split), split, f"data.sources.{source}")
            for source, folder in self.prepared.sources.items()
        ]
        return ChainedRows(rows)

    def _stream(self, split: str, index: int) -> PhaseRows:
        if (split, index) not in self._streams:
            replay, seed = (self.replay, self.seed) if split == "train" else (0.0, _VALIDATION_SEED)
            parts = []
            for phase, source, count in phase_parts(self.phases, index, replay):
                store = self.open_store(self.prepared.sources[source], split)
                parts.append(Part(pieces_of_store(store, phase, self.tokenizer, source), phase.length, count))
            self._streams[split, index] = PhaseRows(parts, self.seq_len, seed, index)
        return self._streams[split, index]

    def fixed_rows(self, split: str) -> NDArray[np.int64]:
        """The rows of the fixed mixed set: of each source its share, evenly spaced over its rows."""
        chained = self.rows(split)
        assert isinstance(chained, ChainedRows)
        names = list(self.prepared.sources)
        counts = shares([self.val_weights.get(name, 0.0) for name in names], max(1, self._mixed_tokens // self.seq_len))
        chosen = []
        for begin, total, count in zip(chained.begins, chained.lengths, counts, strict=True):
            count = min(count, total)
            chosen.append(begin + np.arange(count, dtype=np.int64) * total // max(1, count))
        return np.concatenate(chosen)

    def training_rows(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """The samples themselves: a row has no other name than its place in the stream."""
        return samples

    def _training_batch(self, samples: NDArray[np.int64], rows: NDArray[np.int64]) -> Batch:
        phases = np.searchsorted(self._phase_starts, samples, side="right") - 1
        parts = [(np.flatnonzero(phases == index), int(index)) for index in np.unique(phases)]
        batches = [self._stream("train", index).gather(samples[where]) for where, index in parts]
        order = torch.from_numpy(np.argsort(np.concatenate([where for where, _ in parts])))
        batch = {name: torch.cat([b[name] for b in batches])[order] for name in batches[0]}
        return {**batch, "samples": torch.from_numpy(samples.copy())}

    # -- validation ----------------------------------------------------------------------------------------------------

    def val_dataloader(self) -> list[FixedLoader]:
        return [FixedLoader(self, self.rows("val"), self.fixed_rows("val")), _PhaseLoader(self, self._phase_rows)]

    # -- state ---------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "phase_starts": list(self._phase_starts), "order": self._order()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._phase_starts = [int(sample) for sample in state_dict["phase_starts"]]

    def check_state(self, state_dict: dict[str, Any]) -> None:
        super().check_state(state_dict)
        if state_dict["order"] != self._order():
            raise CheckpointError("data.phases or data.replay: the checkpoint was trained with others")

    def _order(self) -> str:
        return repr([(p.name, p.length, p.begin, sorted(p.weights.items())) for p in self.phases] + [self.replay])


class ChainedRows:
    """The rows of several tables, one table after the other."""

    def __init__(self, tables: Sequence[Rows]) -> None:
        self.seq_len = tables[0].seq_len
        self.lengths = [len(table) for table in tables]
        self.begins = [0, *np.cumsum(self.lengths)[:-1].tolist()]
        self._tables = list(tables)

    def __len__(self) -> int:
        return sum(self.lengths)

    def gather(self, rows: NDArray[np.int64]) -> Batch:
        """The batch of these rows; a row number of -1 gives a filler, whose targets are all ignored."""
        which = np.maximum(np.searchsorted(self.begins, rows, side="right") - 1, 0)
        batch: Batch = {}
        for number in np.unique(which):
            where = np.flatnonzero(which == number)
            local = np.where(rows[where] < 0, -1, rows[where] - self.begins[number])
            for name, part in self._tables[number].gather(local).items():
                batch.setdefault(name, part.new_zeros(len(rows), self.seq_len))[torch.from_numpy(where)] = part
        return batch


class _PhaseLoader(FixedLoader):
    """This rank's share of the first rows of the present phase's stream; equally many in all phases."""

    def __init__(self, module: CurriculumDataModule, count: int) -> None:
        super().__init__(module, module._stream("val", module.phase), np.arange(count, dtype=np.int64))
        self._curriculum = module

    def __iter__(self) -> Iterator[Batch]:
        self._rows = self._curriculum._stream("val", self._curriculum.phase)
        return super().__iter__()
