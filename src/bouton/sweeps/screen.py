"""Which parameters matter: Morris' elementary effects (Technometrics 33 (1991) 161), by SALib."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from bouton.sweeps.engine import PrivateRandom
from bouton.sweeps.settings import Screen


def screen_points(parameters: int, screen: Screen, seed: int) -> list[list[float]]:
    """Trajectories through the unit cube, each moving one parameter at a time; each has parameters + 1 points."""
    from SALib.sample import morris

    with PrivateRandom(seed).active():  # SALib draws from numpy's global generator
        points = morris.sample(_problem(parameters), screen.trajectories, num_levels=screen.levels, seed=seed)
    return [[float(u) for u in point] for point in points]


def influence(points: Sequence[Sequence[float]], scores: Sequence[float | None], screen: Screen) -> list[float]:
    """Per parameter the mean of the absolute elementary effects (mu*).

    A trajectory with a failed trial is left out; where fewer than two are whole, a failure counts as the worst score.
    """
    from SALib.analyze import morris

    count = len(points[0])
    size = count + 1
    values = np.array([math.nan if score is None else score for score in scores])
    cloud = np.array(points)
    whole = [i for i in range(0, len(values), size) if np.isfinite(values[i : i + size]).all()]
    if len(whole) >= 2:
        rows = np.concatenate([np.arange(i, i + size) for i in whole])
        values, cloud = values[rows], cloud[rows]
    elif np.isfinite(values).any():
        values = np.where(np.isfinite(values), values, np.nanmax(values))
    else:
        return [0.0] * count
    with PrivateRandom(0).active():
        result: Any = morris.analyze(
            _problem(count), cloud, values, num_levels=screen.levels, num_resamples=10, seed=0, print_to_console=False
        )
    effects = np.asarray(result["mu_star"], dtype=float)
    return [float(effect) if math.isfinite(effect) else 0.0 for effect in effects]


def _problem(parameters: int) -> dict[str, Any]:
    return {
        "num_vars": parameters,
        "names": [str(i) for i in range(parameters)],
        "bounds": [[0.0, 1.0]] * parameters,
    }
