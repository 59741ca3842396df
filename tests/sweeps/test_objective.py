"""Scores against the plain body, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from bouton.errors import ConfigError
from bouton.sweeps.gate import Evidence, problems
from bouton.sweeps.objective import Objective, Score


def outcome(loss: float, rate: float = 100.0, flops: float = 10.0, **more: Any) -> dict[str, Any]:
    facts = {"loss": loss, "first_loss": 6.0, "tokens_per_second": rate, "training_flops_per_token": flops}
    return {"status": "finished", "value": loss, "facts": facts, **more}


BASELINE = {0: outcome(2.0), 1: outcome(4.0)}
COSTS = ("tokens_per_second", "training_flops_per_token")


def test_the_plain_body_scores_one_and_the_weights_count() -> None:
    objective = Objective(0.7, 0.3, COSTS, BASELINE)
    assert objective.score(BASELINE).value == pytest.approx(1.0)
    better = {0: outcome(1.8), 1: outcome(3.6)}
    assert objective.score(better).value == pytest.approx(0.7 * 0.9 + 0.3)
    slower = {0: outcome(2.0, rate=25.0), 1: outcome(4.0, rate=25.0)}
    assert objective.score(slower).value == pytest.approx(0.7 + 0.3 * 2.0)  # sqrt(4 * 1): two costs, one of them 4
    assert objective.score(slower).parts == pytest.approx({"loss_ratio": 1.0, "cost_ratio": 2.0})


def test_seeds_are_paired() -> None:
    objective = Objective(1.0, 0.0, (), BASELINE)
    assert objective.score({0: outcome(1.0), 1: outcome(4.0)}).value == pytest.approx((0.5 + 1.0) / 2)


def test_failed_stopped_and_plain_values() -> None:
    objective = Objective(0.7, 0.3, COSTS, BASELINE)
    failed = {"status": "failed", "value": None, "error": "x"}
    assert objective.score({0: outcome(1.0), 1: failed}) == Score(None, "failed")
    stopped = outcome(5.0, status="stopped", prediction={"predicted_loss": 4.0})
    score = objective.score({0: outcome(2.0), 1: stopped})
    assert score.status == "stopped" and score.value == pytest.approx(1.0)
    plain = Objective(0.7, 0.3, COSTS)
    assert plain.score({0: {"status": "finished", "value": 2.0}, 1: {"status": "finished", "value": 4.0}}).value == 3.0


def test_the_loss_that_a_score_needs() -> None:
    objective = Objective(0.7, 0.3, COSTS, BASELINE)
    loss = objective.loss_for(0.95, 1, cost_ratio=0.8)
    own = outcome(loss, rate=100 / 0.8**2)
    assert Objective(0.7, 0.3, COSTS, {1: BASELINE[1]}).score({1: own}).value == pytest.approx(0.95)


def test_an_unknown_cost_is_one_line() -> None:
    objective = Objective(0.7, 0.3, ("tokens_per_secund",), BASELINE)
    with pytest.raises(ConfigError, match=r"'tokens_per_secund' is not among .* did you mean 'tokens_per_second'"):
        objective.score(BASELINE)


def test_deviation_has_loss_and_cost() -> None:
    objective = Objective(0.5, 0.5, ("tokens_per_second",), BASELINE)
    assert objective.deviation([outcome(2.0), outcome(2.0)]) == 0.0
    assert objective.deviation([outcome(1.9), outcome(2.1)]) == pytest.approx(0.5 * 0.1 / 2**0.5)
    assert objective.deviation([outcome(2.0, 100.0), outcome(2.0, 50.0)]) > 0.2
    assert objective.deviation([outcome(2.0)]) == 0.0


def evidence(**changes: Any) -> Evidence:
    given: dict[str, Any] = {
        "baseline": [outcome(2.0), outcome(2.02)],
        "start": Score(0.99, "finished"),
        "probes": [Score(1.1, "finished"), Score(0.9, "finished")],
        "bad": Score(1.8, "finished"),
        "deviation": 0.01,
        "seeds": 2,
        "known_bad": ["optimizer.lr=1e-7"],
    }
    return Evidence(**{**given, **changes})


def test_a_sound_objective_passes_the_gate() -> None:
    assert list(problems(evidence())) == []
    assert list(problems(evidence(bad=Score(None, "failed")))) == []  # that it cannot even train is bad enough
    assert list(problems(evidence(bad=None))) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": [outcome(6.5)]}, "the baseline does not learn: its loss is 6 at the first step and 6.5"),
        ({"bad": Score(0.995, "finished")}, "the objective does not move: optimizer.lr=1e-7"),
        ({"deviation": 0.5}, "the noise hides the signal"),
        ({"start": Score(None, "failed")}, "the trial at the defaults failed"),
        ({"probes": [Score(None, "failed"), Score(1.0, "finished")]}, "1 of 2 random points"),
    ],
)
def test_what_the_gate_says(changes: dict[str, Any], message: str) -> None:
    found = list(problems(evidence(**changes)))
    assert any(message in line for line in found) and all("\n" not in line for line in found)
