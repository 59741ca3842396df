"""Where a learning curve is going: a power law L(t) = c + a t^-b through validation losses, with an optimistic bound.

For fixed b the law is linear in c and a, so all of it is a scan over b with non-negative least squares. The bound is
the lowest end among all laws that fit the points about as well as the best one does (the F test's region of confidence
for three parameters), which, unlike a covariance matrix, is also right where the points hardly tell the exponent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls
from scipy.stats import f as f_distribution

MIN_POINTS = 4
_EXPONENTS = np.geomspace(0.03, 3.0, 60)
_FLOORS = np.linspace(0.0, 1.0, 41)  # c as a share of the lowest loss seen
_LEAST_NOISE = 1e-3  # relative; points that lie on a law by chance must not make it certain


@dataclass(frozen=True)
class Extrapolation:
    """The loss at the last step.

    Args:
        predicted: by the best law.
        optimistic: the lowest that the points leave possible.
    """

    predicted: float
    optimistic: float


def extrapolate(steps: Sequence[int], losses: Sequence[float], last: int, confidence: float) -> Extrapolation | None:
    """Extrapolate a validation curve to step ``last``; None with fewer than 4 points.

    Args:
        steps: optimizer steps, > 0 and increasing.
        losses: at these steps.
        confidence: of the bound, between 0 and 1.
    """
    if len(steps) < MIN_POINTS:
        return None
    t, y = np.asarray(steps, dtype=float), np.asarray(losses, dtype=float)
    if not np.isfinite(y).all():
        return None
    scale = t[-1]
    errors, ends = [], []
    for exponent in _EXPONENTS:
        falling = (t / scale) ** -exponent
        end = (last / scale) ** -exponent
        (floor, size), residual = nnls(np.stack([np.ones_like(t), falling], axis=1), y)
        errors.append(residual**2)
        ends.append(floor + size * end)
        for share in _FLOORS:  # what else the points leave possible: other floors, each with its best size
            floor = share * y.min()
            size = max(0.0, float(falling @ (y - floor)) / float(falling @ falling))
            errors.append(float(((y - floor - size * falling) ** 2).sum()))
            ends.append(floor + size * end)
    squares, values = np.array(errors), np.array(ends)
    best = int(squares.argmin())
    freedom = max(len(t) - 3, 1)
    noise = max(squares[best] / freedom, (_LEAST_NOISE * float(y.mean())) ** 2)
    limit = squares[best] + 3 * noise * float(f_distribution.ppf(confidence, 3, freedom))
    return Extrapolation(float(values[best]), float(values[squares <= limit].min()))
