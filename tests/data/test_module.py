from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor, nn

from bouton.data import TokenDataModule
from bouton.errors import CheckpointError, ConfigError

Make = Callable[..., TokenDataModule]


def tokens(module: TokenDataModule, count: int) -> list[Tensor]:
    return [batch["tokens"] for batch in itertools.islice(module.train_dataloader(), count)]


def samples(module: TokenDataModule, count: int) -> list[Tensor]:
    return [batch["samples"] for batch in itertools.islice(module.train_dataloader(), count)]


def as_rank(module: TokenDataModule, rank: int, world_size: int, monkeypatch: pytest.MonkeyPatch) -> TokenDataModule:
    monkeypatch.setattr(module, "ranks", lambda: (rank, world_size))
    return module


def test_two_ranks_equal_one_with_twice_the_batch(corpus: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    one = tokens(make(corpus, batch_size=8), 80)
    ranks = [tokens(as_rank(make(corpus, batch_size=4), rank, 2, monkeypatch), 80) for rank in range(2)]
    for step in range(80):
        assert torch.equal(torch.cat([ranks[0][step], ranks[1][step]]), one[step])
    numbers = [samples(as_rank(make(corpus, batch_size=4), rank, 2, monkeypatch), 3) for rank in range(2)]
    assert torch.equal(torch.cat([numbers[0][2], numbers[1][2]]), torch.arange(16, 24))


def test_order_depends_on_the_seed_and_each_epoch_is_complete(corpus: Path, make: Make) -> None:
    module = make(corpus, batch_size=4)
    total = len(module.rows("train"))
    epochs = torch.cat(tokens(module, 2 * total // 4 + 4))
    whole = sorted(map(tuple, module.rows("train").gather(torch.arange(total).numpy())["tokens"].tolist()))
    assert sorted(map(tuple, epochs[:total].tolist())) == whole
    assert sorted(map(tuple, epochs[total : 2 * total].tolist())) == whole
    assert not torch.equal(torch.cat(tokens(make(corpus, seed=1, batch_size=4), 5)), epochs[:20])


def test_resume_goes_on_exactly(corpus: Path, make: Make) -> None:
    whole = tokens(make(corpus), 30)
    module = make(corpus)
    tokens(module, 11)
    resumed = make(corpus)
    resumed.load_state_dict(module.state_dict())
    for found, expected in zip(tokens(resumed, 19), whole[11:], strict=True):
        assert torch.equal(found, expected)
    again = make(corpus)  # a second interruption
    again.load_state_dict(resumed.state_dict())
    assert again.samples_consumed == 30 * 4


def test_resume_with_more_ranks_reads_the_same_stream(
    corpus: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = torch.cat(tokens(make(corpus, batch_size=4), 30))
    module = make(corpus, batch_size=4)
    tokens(module, 10)
    ranks = []
    for rank in range(2):
        resumed = as_rank(make(corpus, batch_size=3), rank, 2, monkeypatch)
        resumed.load_state_dict(module.state_dict())
        ranks.append(tokens(resumed, 5))
    found = torch.cat([batch for step in zip(*ranks, strict=True) for batch in step])
    assert torch.equal(found, whole[40:70])


def test_validation_is_seen_once_by_one_rank(corpus: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    module = make(corpus, batch_size=4)
    expected = module.rows("val").gather(module.fixed_rows("val"))
    seen: list[tuple[int, ...]] = []
    lengths = set()
    for rank in range(3):
        loader = as_rank(make(corpus, seed=5, batch_size=4), rank, 3, monkeypatch).val_dataloader()
        batches = list(loader)
        lengths |= {len(batches), len(loader)}
        assert all(batch["tokens"].shape == (4, 16) for batch in batches)
        for batch in batches:
            real = (batch["targets"] != -100).all(1)
            assert ((batch["targets"] == -100).all(1) | real).all()
            seen += map(tuple, batch["targets"][real].tolist())
    assert len(lengths) == 1  # or a rank would wait for the others for ever
    assert sorted(seen) == sorted(map(tuple, expected["targets"].tolist()))


def test_validation_cap_takes_rows_evenly(corpus: Path, make: Make) -> None:
    module = make(corpus, val_tokens=160)
    assert len(module.fixed_rows("val")) == 10
    assert module.fixed_rows("val")[-1] >= 0.85 * len(module.rows("val"))
    assert len(make(corpus, val_tokens=1).fixed_rows("val")) == 1


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_evaluation_bytes_are_the_bytes_of_the_text(kind: str, corpus: Path, make: Make) -> None:
    module = make(corpus, tokenizer={"kind": kind})
    total = sum(
        len(module.tokenizer.decode([t]).encode()) if kind == "bytes" and t < 128 else module.tokenizer.token_bytes[t]
        for batch in module.val_dataloader()
        for t in batch["targets"][batch["targets"] != -100].tolist()
    )
    assert module.evaluation_bytes() == total > 0


def test_checkpoints_of_other_data_are_refused(corpus: Path, make: Make) -> None:
    state = make(corpus).state_dict()
    other = corpus.with_name("other.txt")
    other.write_text(corpus.read_text() + "more")
    cases: list[tuple[TokenDataModule, str]] = [
        (make(corpus, tokenizer={"kind": "bpe"}), "vocabulary of 257 tokens, data=text one of 300"),
        (make(other), "other text"),
        (make(corpus, seed=3), "seed=3"),
        (make(corpus, seq_len=8), r"data\.seq_len=8"),
    ]
    for module, message in cases:
        with pytest.raises(CheckpointError, match=message) as caught:
            module.load_state_dict(state)
        assert "\n" not in str(caught.value)


def test_row_longer_than_the_corpus(corpus: Path, make: Make) -> None:
    with pytest.raises(ConfigError, match=r"data\.seq_len=1000000 is longer than the train split .*at most \d+"):
        make(corpus, seq_len=1_000_000).setup()


class Recorder(lightning.LightningModule):
    """Keeps the tokens of every training batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen: list[Tensor] = []
        self.validated = 0

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        self.seen.append(batch["tokens"])
        return self.weight.sum() * 0

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.validated += 1

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(model: Recorder, module: TokenDataModule, folder: Path, ckpt: Path | None = None, **options: Any) -> None:
    saver = lightning.pytorch.callbacks.ModelCheckpoint(folder, every_n_train_steps=3, save_top_k=-1)
    trainer = lightning.Trainer(
        max_steps=20, accelerator="cpu", devices=1, logger=False, callbacks=[saver], num_sanity_val_steps=1,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, **options,
    )  # fmt: skip
    trainer.fit(model, datamodule=module, ckpt_path=ckpt)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"val_check_interval": 5}, {"limit_train_batches": 6}], ids=["endless", "epochs"])
def test_lightning_trains_validates_and_resumes(
    corpus: Path, make: Make, tmp_path: Path, options: dict[str, int]
) -> None:
    expected = tokens(make(corpus), 20)
    whole = Recorder()
    fit(whole, make(corpus), tmp_path / "whole", **options)
    assert len(whole.seen) == 20
    assert all(torch.equal(a, b) for a, b in zip(whole.seen, expected, strict=True))
    assert whole.validated > 0
    for step in (3, 12):
        resumed = Recorder()
        ckpt = next((tmp_path / "whole").glob(f"*step={step}.ckpt"))
        fit(resumed, make(corpus), tmp_path / f"resumed{step}", ckpt, **options)
        assert len(resumed.seen) == 20 - step
        assert all(torch.equal(a, b) for a, b in zip(resumed.seen, expected[step:], strict=True))
