"""Random calls of the ops and of the compiled functions, many of them wrong: a right answer or an exception, no crash.

Everything is drawn from one :class:`random.Random`, so a call is known by its seed, and hypothesis can drive it.
"""

from __future__ import annotations

from random import Random

from bouton.ops import wheel
from bouton.testing.fuzz import kernels, neurons, ops
from bouton.testing.fuzz.call import Call, WrongAnswerError, attempt
from bouton.testing.fuzz.inputs import break_one

__all__ = ["Call", "WrongAnswerError", "attempt", "make_call"]


def make_call(rng: Random) -> Call:
    """A random call of a random function."""
    makes = (*ops.MAKES, *neurons.MAKES)
    if wheel.why_not("oscillate_backward") is None:  # the last that was written
        makes += (*kernels.MAKES, *neurons.COMPILED)
    call = rng.choice(makes)(rng)
    if rng.random() < 0.5:
        break_one(call, rng)
    return call
