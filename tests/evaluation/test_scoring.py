"""Scores of continuations equal what one pass over each sequence alone says."""

import pytest
import torch

from bouton.evaluation import scoring
from bouton.evaluation.scoring import score, score_all
from bouton.models.body import Body
from bouton.models.build import build


@pytest.fixture(scope="module")
def model() -> Body:
    shape = {"vocab_size": 23, "num_layers": 2, "hidden_size": 16, "num_heads": 2, "init_std": 0.4}
    return build({"model": shape, "mechanism": {"presyn": {}}, "kernels": {"backend": "torch"}}).eval()


CONTEXTS = [[1], [2, 3, 4, 5, 6, 7, 8], [9, 10], [11, 3, 3]]
CONTINUATIONS = [[4, 5, 6], [7], [8, 9, 1, 2, 3, 4], [22]]


def alone(model: Body, context: list[int], continuation: list[int]) -> tuple[float, int]:
    with torch.no_grad():
        logits, _ = model(torch.tensor([context + continuation]))
    rows = torch.log_softmax(logits[0, len(context) - 1 : -1].double(), -1)
    wanted = torch.tensor(continuation)
    return rows.gather(1, wanted[:, None]).sum().item(), int((rows.argmax(1) == wanted).sum())


@pytest.mark.parametrize("elements", [1 << 26, 23 * 4 * 2])
def test_a_batch_of_ragged_rows_equals_each_alone(model: Body, elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "ELEMENTS", elements)  # the small one: chunks of 2 tokens with carried state
    for found in (score(model, CONTEXTS, CONTINUATIONS), score_all(model, CONTEXTS, CONTINUATIONS, 2)):
        for row, context, continuation in zip(found, CONTEXTS, CONTINUATIONS, strict=True):
            logprob, hits = alone(model, context, continuation)
            assert row.logprob == pytest.approx(logprob, abs=1e-4)
            assert (row.hits, row.tokens) == (hits, len(continuation))
            assert row.greedy == (hits == len(continuation))


def test_the_most_likely_continuation_is_greedy(model: Body) -> None:
    with torch.no_grad():
        best = int(model(torch.tensor([[1, 2]]))[0][0, -1].argmax())
    assert score(model, [[1, 2]], [[best]])[0].greedy
    assert not score(model, [[1, 2]], [[(best + 1) % 23]])[0].greedy
