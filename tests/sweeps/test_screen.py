"""The screen finds what matters, with failures as well, and draws the same points again."""

from __future__ import annotations

import numpy as np

from bouton.sweeps.screen import influence, screen_points
from bouton.sweeps.settings import Screen

SCREEN = Screen(trajectories=6, levels=4)


def test_influence() -> None:
    np.random.seed(3)
    before = np.random.get_state()[1].tolist()  # type: ignore[union-attr]
    points = screen_points(5, SCREEN, seed=1)
    assert np.random.get_state()[1].tolist() == before  # type: ignore[union-attr]
    assert len(points) == 6 * 6 and points == screen_points(5, SCREEN, seed=1) != screen_points(5, SCREEN, seed=2)
    scores = [10 * p[2] + 2 * p[0] ** 2 + 0.1 * p[4] for p in points]
    effects = influence(points, list(scores), SCREEN)
    assert sorted(range(5), key=lambda i: -effects[i])[:3] == [2, 0, 4]
    assert effects[1] == effects[3] == 0.0
    assert effects[2] > 9.9
    broken = [None if i == 7 else s for i, s in enumerate(scores)]  # its whole trajectory is left out
    assert sorted(range(5), key=lambda i: -influence(points, broken, SCREEN)[i])[:3] == [2, 0, 4]
    assert influence(points, [None] * 36, SCREEN) == [0.0] * 5
