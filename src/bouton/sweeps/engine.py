"""The search itself: CMA-ES by ask and tell in the unit cube, with restarts, the same every time it is told the same.

The arithmetic is the library ``cma`` (Hansen 2016, arXiv 1604.00772). What is added: a random generator of its own,
resampling of points that cannot be tried, values for trials that failed, and the restarts of IPOP (Auger and Hansen
2005) and BIPOP (Hansen 2009), which ``cma`` offers only inside its own loop over a function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import cma
import numpy as np

from bouton.errors import ConfigError, suggest

POLICIES = ("stop", "ipop", "bipop")
_RESAMPLES = 100
_QUIET = {"verbose": -9, "verb_log": 0, "signals_filename": ""}


class PrivateRandom:
    """numpy's global generator, exchanged for one of our own while the library works.

    ``cma`` draws from the global one, and a training job in this process seeds that anew: without the exchange every
    generation would draw the same numbers.
    """

    def __init__(self, seed: int) -> None:
        self._state = np.random.RandomState(seed).get_state()

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside, the global generator is ours; outside, nobody notices."""
        outer = np.random.get_state()
        np.random.set_state(self._state)
        try:
            yield
        finally:
            self._state = np.random.get_state()
            np.random.set_state(outer)


class Search:
    """One search in [0, 1]^dimension for a minimum.

    Args:
        start: (dimension,) where the first distribution is centred.
        sigma: its standard deviation, in units of the cube.
        popsize: points of a generation; None: 4 + floor(3 ln dimension).
        seed: of everything that is drawn.
        smallest_steps: (dimension,) standard deviations below which a coordinate must not fall.
        policy: what happens when a search stagnates: ``stop``, ``ipop`` (restart at random with twice the population)
            or ``bipop`` (alternate those with small local searches, at equal budgets).
        patience: generations without a gain over the best of this start that count as stagnation, beside cma's own
            criteria; None: only those.
        min_delta: a smaller gain counts as none.
        options: further options of ``cma``.
    """

    def __init__(
        self,
        start: Sequence[float],
        *,
        sigma: float = 0.25,
        popsize: int | None = None,
        seed: int = 1,
        smallest_steps: Sequence[float] | None = None,
        policy: str = "stop",
        patience: int | None = None,
        min_delta: float = 0.0,
        options: dict[str, Any] | None = None,
    ) -> None:
        if policy not in POLICIES:
            raise ConfigError(f"stagnation.policy = '{policy}' is unknown: {suggest(policy, POLICIES)}")
        self.start = [float(u) for u in start]
        self.sigma0 = float(sigma)
        self.policy, self.patience, self.min_delta = policy, patience, min_delta
        self.smallest_steps = None if smallest_steps is None else [float(s) for s in smallest_steps]
        self.random = PrivateRandom(seed)
        self.options = dict(options or {})
        self.evaluations = 0
        self.generation = 0
        self.restarts = 0
        self.stopped: str | None = None
        self.last_restart: str | None = None  # why the present start began
        self.best_value, self.best_point = math.inf, list(self.start)
        self._budgets = {"large": 0, "small": 0}
        self._regime = "large"
        self._doublings = 0
        self._worst = -math.inf
        # cma's covariance needs two coordinates: a lone one gets a companion without effect.
        self._companion = len(self.start) == 1
        self._begin(self.start, self.sigma0, popsize)
        self.first_popsize = self.popsize

    def _begin(self, start: Sequence[float], sigma: float, popsize: int | None) -> None:
        points = [*start, 0.5] if self._companion else list(start)
        options: dict[str, Any] = {**_QUIET, "bounds": [0.0, 1.0], "seed": math.nan, **self.options}
        if popsize is not None:
            options["popsize"] = popsize
        if self.smallest_steps is not None and any(self.smallest_steps):
            options["minstd"] = [*self.smallest_steps, 0.0] if self._companion else self.smallest_steps
        with self.random.active():
            self._es = cma.CMAEvolutionStrategy(points, sigma, options)
        self._asked: list[Any] = []
        self._best_here, self._waited = math.inf, 0

    @property
    def popsize(self) -> int:
        """Points of the present generation."""
        return int(self._es.popsize)

    @property
    def sigma(self) -> float:
        """The present step size."""
        return float(self._es.sigma)

    @property
    def mean(self) -> list[float]:
        """(dimension,) centre of the present distribution, in the cube: under noise a better guess than the best."""
        return self._visible(self._es.result.xfavorite)

    @property
    def covariance(self) -> np.ndarray[Any, Any]:
        """(dimension, dimension) of the present distribution, step size included."""
        size = len(self.start)
        return np.asarray(self._es.sigma**2 * self._es.sm.covariance_matrix)[:size, :size]

    def ask(self, feasible: Callable[[Sequence[float]], bool] | None = None) -> list[list[float]]:
        """The points of the next generation; those that are not ``feasible`` are drawn again, up to 100 times."""
        with self.random.active():
            points = list(self._es.ask())
            for index in range(len(points)):
                for _ in range(_RESAMPLES):
                    if feasible is None or feasible(self._visible(points[index])):
                        break
                    points[index] = self._es.ask(1)[0]
        self._asked = points
        return [self._visible(point) for point in points]

    def tell(self, values: Sequence[float | None]) -> None:
        """The values of what was asked, in order; None (or not finite) for a trial without one.

        Such a trial counts as worse than everything so far. Where the policy says so, a stagnating search begins anew;
        else :attr:`stopped` tells why it ended.
        """
        finite = [float(v) for v in values if v is not None and math.isfinite(v)]
        self._worst = max([self._worst, *finite])
        penalty = self.penalty
        told = [float(v) if v is not None and math.isfinite(v) else penalty for v in values]
        with self.random.active():
            self._es.tell(self._asked, told)
        self.generation += 1
        self.evaluations += len(told)
        self._budgets[self._regime] += len(told)
        index = min(range(len(told)), key=lambda i: told[i])
        if finite and told[index] < self.best_value:
            self.best_value, self.best_point = told[index], self._visible(self._asked[index])
        gained = bool(finite) and told[index] < self._best_here - self.min_delta
        self._best_here = min(self._best_here, told[index]) if finite else self._best_here
        self._waited = 0 if gained else self._waited + 1
        # A generation without any value looks flat to cma, which is no convergence.
        reason = self._stagnation() if finite else None
        if reason is not None:
            self._restart(reason)

    @property
    def penalty(self) -> float:
        """The value that stands for a failure: worse than the worst so far by a tenth of its size."""
        if not math.isfinite(self._worst):
            return 1.0
        return self._worst + max(0.1 * abs(self._worst), 1e-12)

    def _visible(self, point: Any) -> list[float]:
        return [float(u) for u in point[: len(self.start)]]

    def _stagnation(self) -> str | None:
        if self.patience is not None and self._waited >= self.patience:
            return f"no gain in {self._waited} generations"
        reasons = self._es.stop()
        return ", ".join(sorted(reasons)) if reasons else None

    def _restart(self, reason: str) -> None:
        if self.policy == "stop":
            self.stopped = reason
            return
        sigma, popsize = self.sigma0, self.first_popsize
        with self.random.active():
            if self.policy == "bipop" and self.restarts > 0 and self._budgets["small"] < self._budgets["large"]:
                self._regime = "small"
                sigma *= 0.01 ** np.random.uniform()
                ratio = 2**self._doublings / 2
                popsize = max(2, int(popsize * ratio ** (np.random.uniform() ** 2)))
            else:
                self._regime = "large"
                self._doublings += 1
                popsize *= 2**self._doublings
            start = np.random.uniform(size=len(self.start)).tolist()
        self.restarts += 1
        self.last_restart = reason
        self._begin(start, sigma, popsize)
