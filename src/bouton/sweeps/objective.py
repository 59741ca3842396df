"""The score of a candidate: quality and performance relative to the plain body, averaged over paired seeds.

    score = quality * loss / loss_none + performance * cost / cost_none

``loss`` is the final validation loss; ``cost`` the geometric mean of the chosen costs' ratios, where for a rate (tokens
per second) more is cheaper. ``none`` is trained by the search itself, with the same seeds and the same words otherwise.
1 is as good as the plain body, less is better. A task that is no training run is scored by its value alone.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bouton.errors import ConfigError, suggest
from bouton.sweeps.trial import FAILED, STOPPED

RATES = ("tokens_per_second", "mfu")  # of these, more is cheaper
Outcome = Mapping[str, Any]  # a trial's record in the journal


@dataclass(frozen=True)
class Score:
    """What a candidate is told to be worth; ``value`` is None if one of its trials failed."""

    value: float | None
    status: str
    parts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Objective:
    """Scores candidates.

    Args:
        quality: weight of the loss.
        performance: weight of the cost; both weights add up to 1.
        costs: names of costs in ``summary.json``.
        baseline: seed -> the outcome of the plain body; empty: the value of a trial is its score.
    """

    quality: float
    performance: float
    costs: tuple[str, ...]
    baseline: Mapping[int, Outcome] = field(default_factory=dict)

    def score(self, outcomes: Mapping[int, Outcome]) -> Score:
        """The score of a candidate from its outcomes by seed."""
        states = {str(outcome["status"]) for outcome in outcomes.values()}
        if FAILED in states:
            return Score(None, FAILED)
        status = STOPPED if STOPPED in states else "finished"
        if not self.baseline:
            return Score(statistics.fmean(float(o["value"]) for o in outcomes.values()), status)
        losses = [_loss(o) / _loss(self.baseline[seed]) for seed, o in outcomes.items()]
        parts = {"loss_ratio": statistics.fmean(losses)}
        total = self.quality * parts["loss_ratio"]
        if self.performance:
            ratios = [self.cost_ratio(seed, outcome) for seed, outcome in outcomes.items()]
            parts["cost_ratio"] = statistics.fmean(ratios)
            total += self.performance * parts["cost_ratio"]
        return Score(total, status, parts)

    def deviation(self, outcomes: Sequence[Outcome]) -> float:
        """Standard deviation over seeds of the score of one arm relative to its own mean; 0 for a lone seed."""
        sound = [outcome for outcome in outcomes if outcome["status"] != FAILED]
        if len(sound) < 2:
            return 0.0
        if not self.baseline:
            return statistics.stdev(_loss(outcome) for outcome in sound)
        losses = [_loss(outcome) for outcome in sound]
        scores = [self.quality * loss / statistics.fmean(losses) for loss in losses]
        if self.performance:
            costs = [math.exp(self._log_cost(outcome)) for outcome in sound]
            scores = [s + self.performance * c / statistics.fmean(costs) for s, c in zip(scores, costs, strict=True)]
        return statistics.stdev(scores)

    def cost_ratio(self, seed: int, outcome: Outcome) -> float:
        """cost / cost of the plain body with the same seed."""
        return math.exp(self._log_cost(outcome) - self._log_cost(self.baseline[seed]))

    def _log_cost(self, outcome: Outcome) -> float:
        logs = [math.log(_cost(outcome, name)) * (-1 if name in RATES else 1) for name in self.costs]
        return statistics.fmean(logs)

    def loss_for(self, score: float, seed: int, cost_ratio: float) -> float:
        """The loss with which a trial of that cost reaches ``score``."""
        return (score - self.performance * cost_ratio) / self.quality * _loss(self.baseline[seed])


def _loss(outcome: Outcome) -> float:
    """The final validation loss; of a trial that was stopped, the one that it would probably have reached."""
    prediction = outcome.get("prediction")
    return float(prediction["predicted_loss"]) if prediction else float(outcome["value"])


def _cost(outcome: Outcome, name: str) -> float:
    facts = outcome.get("facts", {})
    value = facts.get(name)
    if value is None or not value > 0:
        known = [key for key, number in facts.items() if isinstance(number, int | float) and key not in _NO_COST]
        raise ConfigError(f"hydra.sweeper.costs: '{name}' is not among the costs of a run here: {suggest(name, known)}")
    return float(value)


_NO_COST = ("loss", "first_loss", "step")
