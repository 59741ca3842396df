from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bouton.data.mqar import MQARRows
from bouton.errors import ConfigError


def rows(**fields: Any) -> MQARRows:
    defaults: dict[str, Any] = {"num_pairs": 4, "vocab_size": 32, "seq_len": 24, "query_power": 0.1,
                                "random_fill": False, "seed": 0, "split": 0, "num_rows": 1000}  # fmt: skip
    return MQARRows(**(defaults | fields))


@pytest.mark.parametrize("random_fill", [False, True])
def test_targets_are_the_values_of_the_keys(random_fill: bool) -> None:
    batch = rows(random_fill=random_fill).gather(np.arange(200))
    for tokens, targets in zip(batch["tokens"].tolist(), batch["targets"].tolist(), strict=True):
        pairs = dict(zip(tokens[0:8:2], tokens[1:8:2], strict=True))
        assert len(pairs) == 4
        assert all(1 <= key < 16 <= value < 32 for key, value in pairs.items())
        asked = [place for place, target in enumerate(targets) if target != -100]
        assert sorted(tokens[place] for place in asked) == sorted(pairs)
        assert all(place >= 8 and targets[place] == pairs[tokens[place]] for place in asked)
        rest = [tokens[place] for place in range(8, 24) if place not in asked]
        assert (0 not in rest) if random_fill else (set(rest) == {0})


def test_a_row_depends_on_its_index_seed_and_split_alone() -> None:
    whole = rows().gather(np.arange(20))["tokens"]
    assert torch.equal(rows().gather(np.array([7, 3]))["tokens"], whole[[7, 3]])
    assert len({tuple(row) for row in whole.tolist()}) == 20
    for other in (rows(seed=1), rows(split=1)):
        assert not torch.equal(other.gather(np.arange(20))["tokens"], whole)


def test_query_power_sets_how_early_queries_come() -> None:
    def mean_place(power: float) -> float:
        made = rows(num_pairs=2, seq_len=64, query_power=power)
        return float((made.gather(np.arange(2000))["targets"] != -100).nonzero()[:, 1].float().mean())

    early, uniform = mean_place(0.01), mean_place(1.0)
    assert early < 20
    assert abs(uniform - (4 + 62) / 2) < 1


def test_every_key_and_value_occurs() -> None:
    tokens = rows().gather(np.arange(300))["tokens"]
    assert set(tokens[:, 0:8:2].unique().tolist()) == set(range(1, 16))
    assert set(tokens[:, 1:8:2].unique().tolist()) == set(range(16, 32))


def test_fillers_and_full_rows() -> None:
    batch = rows(num_pairs=6, seq_len=24, vocab_size=14).gather(np.array([0, -1]))
    assert (batch["targets"][0] != -100).sum() == 6
    assert (batch["targets"][1] == -100).all()
    assert batch["starts"][:, 0].all() and not batch["starts"][:, 1:].any()


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"seq_len": 14}, "data.seq_len=14"), ({"seq_len": 25}, "even"), ({"vocab_size": 9}, "data.vocab_size=9")],
)
def test_impossible_settings(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rows(**fields)
