"""Entity-level counts by hand, and against a reading of one label after the other."""

from __future__ import annotations

import math

import pytest
import torch

from bouton.data.pii.bio import decode_labels, label_names
from bouton.training.metrics import LabelMetrics, count_entities
from bouton.training.module import summed_nll

X, OUT, BP, IP, BD, ID = -100, 0, 1, 2, 3, 4


@pytest.mark.parametrize(
    ("predicted", "targets", "found", "ours", "true"),
    [
        ([OUT, BP, IP, OUT], [OUT, BP, IP, OUT], [1, 0], [1, 0], [1, 0]),
        ([OUT, BP, OUT, OUT], [OUT, BP, IP, OUT], [0, 0], [1, 0], [1, 0]),  # too short
        ([BP, IP, IP, OUT], [OUT, BP, IP, OUT], [0, 0], [1, 0], [1, 0]),  # begins too early
        ([OUT, BD, ID, OUT], [OUT, BP, IP, OUT], [0, 0], [0, 1], [1, 0]),  # of another type
        ([OUT, BP, BP, OUT], [OUT, BP, IP, OUT], [0, 0], [2, 0], [1, 0]),  # in two
        ([BP, IP, BP, IP], [BP, IP, BD, ID], [1, 0], [2, 0], [1, 1]),
        ([OUT, IP, IP, OUT], [OUT, BP, IP, OUT], [1, 0], [1, 0], [1, 0]),  # I without B begins an entity
        ([BP, BP, IP, BP], [BP, X, X, BP], [2, 0], [2, 0], [2, 0]),  # what is ignored is outside
        ([BP, IP, IP, IP], [BP, IP, IP, X], [1, 0], [1, 0], [1, 0]),
        ([OUT, OUT, OUT, OUT], [BP, BD, ID, BD], [0, 0], [0, 0], [1, 2]),
    ],
)
def test_counts_by_hand(
    predicted: list[int], targets: list[int], found: list[int], ours: list[int], true: list[int]
) -> None:
    counts = count_entities(torch.tensor([predicted]), torch.tensor([targets]), 2)
    assert counts.tolist() == [found, ours, true]


def test_counts_are_those_of_a_reading_one_by_one() -> None:
    generator = torch.Generator().manual_seed(0)
    types = ("P", "D", "Q")
    targets = torch.randint(0, 7, (400, 9), generator=generator)
    same = torch.rand(targets.shape, generator=generator) < 0.7
    predicted = torch.where(same, targets, torch.randint(0, 7, targets.shape, generator=generator))
    expected = torch.zeros(3, 3, dtype=torch.int64)
    for p, t in zip(predicted.tolist(), targets.tolist(), strict=True):
        ours, true = set(decode_labels(p, types)), set(decode_labels(t, types))
        for row, spans in enumerate((ours & true, ours, true)):
            for span in spans:
                expected[row, types.index(span.type)] += 1
    assert torch.equal(count_entities(predicted, targets, 3), expected)
    assert (expected > 100).all()


def test_precision_recall_and_f1_are_of_all_batches() -> None:
    metrics = LabelMetrics(label_names(("P", "D")))
    for predicted, targets in (
        ([BP, IP, OUT], [BP, IP, OUT]),
        ([BP, OUT, BP], [OUT, BD, BP]),
        ([OUT, OUT, BP], [OUT, OUT, OUT]),
    ):
        logits = torch.nn.functional.one_hot(torch.tensor([predicted]), 5).float()
        metrics.update(torch.tensor(3.0), logits, torch.tensor([targets]))
    values = metrics.compute()
    assert values["precision"] == 2 / 4 and values["recall"] == 2 / 3 and values["f1"] == 4 / 7
    assert values["f1_P"] == 4 / 6 and values["f1_D"] == 0
    assert values["loss"] == 1.0 and values["accuracy"] == 6 / 9 and math.isnan(values["bits_per_byte"])
    metrics.reset()
    assert math.isnan(metrics.compute()["f1"])


def test_weights_of_labels_in_the_loss() -> None:
    logits = torch.randn(1, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets = torch.tensor([[0, 3, X]])
    p = logits.log_softmax(-1)
    weights = torch.tensor([0.25, 1, 1, 1, 1], dtype=torch.float64)
    torch.testing.assert_close(summed_nll(logits, targets, weights), -0.25 * p[0, 0, 0] - p[0, 1, 3])
    torch.testing.assert_close(summed_nll(logits, targets), -p[0, 0, 0] - p[0, 1, 3])
