"""The mixture with remembered contexts: helps where they tell what the model does not, and is a distribution."""

import pytest
import torch

from bouton.errors import ConfigError
from bouton.evaluation import evaluate
from bouton.evaluation.tasks.knn import SHARES, _mixed
from bouton.runs import Run


def test_the_mixture_is_chosen_and_the_model_is_beside_it(stories: Run) -> None:
    found = evaluate(stories, "knn", {"knn": {"memory": 300, "neighbours": 20, "rows": 12}})["knn"]["numbers"]
    assert found["remembered"] == 300
    assert 0 <= found["share"] <= 0.95
    assert found["model"] > 1 and found["mixed"] > 1
    assert found["model"] == pytest.approx(evaluate(stories, "ngrams")["ngrams"]["numbers"]["model"], rel=0.3)
    again = evaluate(stories, "knn", {"knn": {"memory": 300, "neighbours": 20, "rows": 12, "seed": 1}})["knn"][
        "numbers"
    ]
    assert again["model"] == found["model"]


def test_no_share_is_the_model() -> None:
    model, vote = torch.rand(7, dtype=torch.float64), torch.rand(4, 7, dtype=torch.float64)
    assert torch.equal(_mixed(SHARES[0], model, vote), model.expand(4, 7))
    assert torch.allclose(_mixed(torch.tensor(1.0), model, vote), vote)


def test_wrong_options_are_one_line(stories: Run) -> None:
    with pytest.raises(ConfigError, match=r"knn\.memory = 0"):
        evaluate(stories, "knn", {"knn": {"memory": 0}})
