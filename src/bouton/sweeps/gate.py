"""What must hold before many hours are spent: the baseline learns, the objective moves, noise is below the signal."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bouton.sweeps.objective import Outcome, Score


@dataclass(frozen=True)
class Evidence:
    """What was measured.

    Args:
        baseline: outcomes of the plain body over seeds (of the defaults for a task without mechanisms).
        start: the score of the defaults with one seed.
        probes: scores of random points of the space with that seed.
        bad: the score of the defaults with the words that must be bad; None: there are none.
        deviation: standard deviation over seeds of the baseline's score.
        seeds: over how many seeds a candidate is averaged.
        known_bad: those words.
    """

    baseline: Sequence[Outcome]
    start: Score
    probes: Sequence[Score]
    bad: Score | None
    deviation: float
    seeds: int
    known_bad: Sequence[str]


def problems(evidence: Evidence) -> Iterator[str]:
    """One line for each thing that does not hold."""
    for outcome in evidence.baseline:
        facts = outcome.get("facts", {})
        first, last = facts.get("first_loss"), facts.get("loss")
        if first is not None and last is not None and not last < first:
            yield f"the baseline does not learn: its loss is {first:.4g} at the first step and {last:.4g} at the end"
            break
    if evidence.start.value is None:
        yield "the trial at the defaults failed"
        return
    if evidence.bad is not None and evidence.bad.value is not None:
        moved = evidence.bad.value - evidence.start.value
        if moved <= evidence.deviation:
            yield (
                f"the objective does not move: {' '.join(evidence.known_bad)} changes the score by {moved:.4g}, "
                f"the noise over seeds is {evidence.deviation:.4g}"
            )
    values = [score.value for score in evidence.probes if score.value is not None]
    if len(values) < 2:
        yield f"{len(evidence.probes) - len(values)} of {len(evidence.probes)} random points of the space failed"
        return
    signal = statistics.stdev([evidence.start.value, *values])
    error = evidence.deviation / evidence.seeds**0.5
    if signal <= error:
        yield (
            f"the noise hides the signal: random points of the space differ by {signal:.4g}, a score over "
            f"{evidence.seeds} seed(s) is uncertain by {error:.4g}; train longer, or use more seeds"
        )
