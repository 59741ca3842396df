"""The engine equals cma's own loop on test functions, and is the same whatever happens around it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import cma
import numpy as np
import pytest

from bouton.sweeps.axes import Axis
from bouton.sweeps.engine import PrivateRandom, Search
from bouton.sweeps.space import Space

LOW, HIGH, DIMENSION = -5.0, 5.0, 10
SPACE = Space(tuple(Axis(f"x{i}", low=LOW, high=HIGH) for i in range(DIMENSION)))
Function = Callable[[Sequence[float]], float]


def value(function: Function, point: Sequence[float]) -> float:
    return float(function(np.array(list(SPACE.decode(point).values()))))


@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize(("name", "budget"), [("sphere", 1500), ("rosen", 2500), ("rastrigin", 2500)])
def test_it_is_fmin2_in_ten_dimensions(name: str, budget: int, noise: float) -> None:
    """With the same seed and budget every point that is tried is the same, noise (multiplicative) or not."""
    function = getattr(cma.ff, name)
    for seed in (1, 2, 3):
        start = np.random.RandomState(100 + seed).uniform(0.2, 0.8, DIMENSION)
        tried: dict[str, list[list[float]]] = {"ours": [], "fmin2": []}
        values: dict[str, list[float]] = {"ours": [], "fmin2": []}

        def measure(point: Sequence[float], who: str, draw: np.random.Generator) -> float:
            tried[who].append([float(u) for u in point])  # noqa: B023
            found = value(function, point) * (1 + noise * draw.standard_normal())
            values[who].append(found)  # noqa: B023
            return found

        draw = np.random.default_rng(seed)
        search = Search(start, sigma=0.2, seed=seed)
        while search.stopped is None and search.evaluations < budget:
            search.tell([measure(point, "ours", draw) for point in search.ask()])
        other = np.random.default_rng(seed)
        settings = {"bounds": [0, 1], "maxfevals": budget, "verbose": -9, "verb_log": 0, "seed": seed}
        cma.fmin2(measure, start, 0.2, settings, args=("fmin2", other))
        count = len(tried["ours"])
        assert tried["fmin2"][:count] == tried["ours"]
        assert values["fmin2"][:count] == values["ours"]
        assert len(tried["fmin2"]) - count <= search.popsize + 1  # it ends a generation later, and tries its mean
        assert search.best_value == min(values["ours"])


def test_a_search_does_not_depend_on_the_global_generator_and_leaves_it_alone() -> None:
    def path(disturb: bool) -> list[list[float]]:
        search, seen = Search([0.3, 0.6, 0.5], seed=4), []
        for _ in range(6):
            if disturb:
                np.random.seed(1)  # what a training job in this process does
            points = search.ask(lambda p: p[0] < 0.8)
            seen += points
            search.tell([sum(p) for p in points])
        return seen

    np.random.seed(9)
    before = np.random.get_state()[1].tolist()  # type: ignore[union-attr]
    first = path(disturb=False)
    assert np.random.get_state()[1].tolist() == before  # type: ignore[union-attr]
    assert path(disturb=True) == first
    assert len({tuple(p) for p in first}) == len(first)
    assert all(p[0] < 0.8 and min(p) >= 0 and max(p) <= 1 for p in first)


def test_failures_are_worse_than_the_worst_and_never_the_best() -> None:
    search = Search([0.5, 0.5], seed=1, popsize=6)
    search.ask()
    search.tell([None, 3.0, math.nan, 1.0, math.inf, 2.0])
    assert search.best_value == 1.0 and search.penalty == pytest.approx(3.3)
    search.ask()
    search.tell([None] * 6)
    assert search.best_value == 1.0 and search.evaluations == 12


@pytest.mark.parametrize("policy", ["ipop", "bipop"])
def test_restarts_find_what_one_start_misses(policy: str) -> None:
    def run(chosen: str) -> tuple[Search, list[int]]:
        search, sizes = Search([0.1, 0.9, 0.2], sigma=0.1, seed=5, policy=chosen), []
        while search.stopped is None and search.evaluations < 10000:
            points = search.ask()
            sizes.append(len(points))
            search.tell([float(cma.ff.rastrigin(np.array(p) * 10 - 5)) for p in points])
        return search, sizes

    stopped, _ = run("stop")
    again, sizes = run(policy)
    assert stopped.stopped and again.stopped is None
    assert again.restarts >= 2 and again.last_restart
    assert again.best_value < 1e-6 < stopped.best_value
    assert max(sizes) >= 4 * sizes[0]
    shrunk = any(later < earlier for earlier, later in itertools.pairwise(sizes))
    assert shrunk == (policy == "bipop")  # small local searches between the large ones


def test_patience_is_stagnation() -> None:
    search = Search([0.5, 0.5], seed=1, patience=3, min_delta=0.1)
    for _ in range(4):
        assert search.stopped is None
        search.tell([1.0 - 0.001 * search.generation + 0.01 * i for i in range(len(search.ask()))])
    assert search.stopped == "no gain in 3 generations"


def test_steps_of_integers_do_not_vanish_and_one_dimension_works() -> None:
    axis = Axis("n", "integer", 1, 20)
    search = Search([0.9], seed=2, sigma=0.3, smallest_steps=[axis.smallest_step])
    seen = set()
    for _ in range(40):
        points = search.ask()
        assert all(len(point) == 1 for point in points)
        values = [axis.decode(point) for point in points]
        seen = set(values)
        search.tell([abs(v - 7) for v in values])
        if search.stopped:
            break
    assert axis.decode(search.best_point) == 7 and len(seen) > 1
    assert search.covariance.shape == (1, 1) and len(search.mean) == 1


def test_private_random_continues_where_it_was() -> None:
    whole = np.random.RandomState(5).rand(4).tolist()
    private, drawn = PrivateRandom(5), []
    for _ in range(4):
        np.random.seed(0)
        with private.active():
            drawn.append(float(np.random.rand()))
    assert drawn == whole
