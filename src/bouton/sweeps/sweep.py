"""A search from its first word to its last: start, gate, screen, phases, confirmation.

Everything that is decided here follows from the outcomes of trials and from one seed. A search that was killed is
therefore resumed by running it again over its journal: what is known is not run, what was decided is decided again and
compared with what the journal says.
"""

from __future__ import annotations

import hashlib
import logging
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig

from bouton.errors import ConfigError, TrainingError
from bouton.sweeps.command import Command
from bouton.sweeps.engine import Search
from bouton.sweeps.gate import Evidence, problems
from bouton.sweeps.journal import Journal, Record
from bouton.sweeps.launching import Job, Trials
from bouton.sweeps.objective import Objective, Score
from bouton.sweeps.record import Recorder
from bouton.sweeps.screen import influence, screen_points
from bouton.sweeps.settings import Settings
from bouton.sweeps.space import Space, Values, words
from bouton.sweeps.trial import FAILED

log = logging.getLogger("bouton.sweeps")
_ATTEMPTS = 200  # draws of a random point that can be tried


@dataclass
class Best:
    """The best candidate so far."""

    name: str
    values: Values
    score: Score


@dataclass
class Sweep:
    """The state of a search. All of it can be computed anew from the journal."""

    settings: Settings
    command: Command
    cfg: DictConfig  # what the fixed words compose
    plain: tuple[str, ...] | None  # words of the baseline; None for a task without mechanisms
    space: Space
    trials: Trials
    journal: Journal
    recorder: Recorder
    seeded: bool
    objective: Objective = field(init=False)
    best: Best | None = None
    names: dict[str, str] = field(default_factory=dict)  # values of a candidate -> the name under which it was tried
    finished: list[tuple[float, float]] = field(default_factory=list)  # score and cost ratio of finished candidates

    # -- the search --------------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """The whole search; what it found."""
        self.begin()
        first = self.influential()
        self.tune("influential" if len(first.axes) < len(self.space.axes) else "all", first, self.settings.trials)
        rest = self.space.only(set(self.space.keys) - set(first.keys))
        for group, keys in rest.groups().items():
            if self.settings.group_trials:
                self.tune(group, rest.only(keys), self.settings.group_trials)
        return self.confirm()

    def begin(self) -> None:
        """The baseline, the defaults and what the gate needs, in one batch, so that all of it runs under one load."""
        settings, gate = self.settings, self.settings.gate
        seeds = settings.seeds
        fresh = range(max(seeds) + 1, max(seeds) + 1 + max(0, (gate.seeds if gate else 0) - len(seeds)))
        measured = [*seeds, *fresh] if self.seeded else list(seeds)
        start = self.space.start
        jobs = [self._job("start", seed, start) for seed in (measured if self.plain is None else seeds)]
        if self.plain is not None:
            jobs += [self._named("none", seed, self.plain) for seed in measured]
        probes = self._random_points(gate.probes) if gate else []
        jobs += [self._job(f"probe{i}", seeds[0], point) for i, point in enumerate(probes)]
        bad = gate.known_bad if gate else ()
        if bad:
            jobs.append(self._named("bad", seeds[0], (*self.command.words, *words(start), *bad)))
        outcomes = self.trials.run(jobs)
        baseline = {seed: outcomes[self._id("none", seed)] for seed in measured} if self.plain is not None else {}
        for outcome in baseline.values():
            if outcome["status"] == FAILED:
                raise TrainingError(f"the baseline cannot be trained: {outcome['error']}")
        self.objective = Objective(settings.quality, settings.performance, settings.costs, baseline)
        score = self.objective.score({seed: outcomes[self._id("start", seed)] for seed in seeds})
        self.names[_key(start)] = "start"
        self._consider("start", start, score)
        log.info("defaults: score %s%s", _number(score.value), _parts(score))
        if gate is None:
            return
        one = seeds[0]
        plain = [outcomes[self._id("start" if self.plain is None else "none", seed)] for seed in measured]
        evidence = Evidence(
            baseline=plain,
            start=self.objective.score({one: outcomes[self._id("start", one)]}),
            probes=[self.objective.score({one: outcomes[self._id(f"probe{i}", one)]}) for i in range(len(probes))],
            bad=self.objective.score({one: outcomes[self._id("bad", one)]}) if bad else None,
            deviation=self.objective.deviation(plain),
            seeds=len(seeds),
            known_bad=bad,
        )
        for problem in problems(evidence):
            if gate.enforce:
                raise ConfigError(f"gate: {problem}; hydra.sweeper.gate.enforce=false goes on nevertheless")
            log.warning("gate: %s", problem)

    def influential(self) -> Space:
        """The part of the space for the first phase: all of it, or what the screen finds most influential."""
        count = self.settings.influential
        if len(self.space.axes) <= count:
            return self.space
        screen, seed = self.settings.screen, self.settings.seeds[0]
        points = screen_points(len(self.space.axes), screen, self.settings.search_seed)
        log.info("screen: %d trials over %d parameters", len(points), len(self.space.axes))
        candidates = [self.space.from_unit(point) for point in points]
        jobs = [self._job(f"screen{i:04d}", seed, values) for i, values in enumerate(candidates)]
        outcomes = self.trials.run(jobs)
        scores = [self.objective.score({seed: outcomes[job.id]}) for job in jobs]
        effects = influence(points, [score.value for score in scores], screen)
        order = sorted(range(len(effects)), key=lambda i: (-effects[i], i))
        ranking = {self.space.keys[i]: effects[i] for i in order}
        self._decided("screen", "screen", influence=ranking)
        for key, effect in ranking.items():
            log.info("screen: %-40s %.4g", key, effect)
        return self.space.only(list(ranking)[:count])

    def tune(self, phase: str, space: Space, budget: int) -> None:
        """One phase: ``space`` by CMA-ES, everything else as the best candidate so far has it."""
        settings = self.settings
        assert self.best is not None
        fixed = dict(self.best.values)
        search = Search(
            space.encode({key: fixed[key] for key in space.keys}),
            sigma=settings.sigma,
            popsize=settings.popsize,
            seed=_seed_of(phase, settings.search_seed),
            smallest_steps=space.smallest_steps,
            policy=settings.stagnation.policy,
            patience=settings.stagnation.patience,
            min_delta=settings.stagnation.min_delta,
        )
        log.info("phase %s: %s", phase, ", ".join(space.keys))
        failures = 0
        while search.stopped is None and (not search.evaluations or search.evaluations + search.popsize <= budget):
            points = search.ask(lambda point: self.space.refusal({**fixed, **space.decode(point)}) is None)
            candidates = [{**fixed, **space.decode(point)} for point in points]
            generation, restart = search.generation, search.restarts
            scores, outcomes = self._evaluate(f"{phase}_g{generation:03d}", candidates)
            sigma = search.sigma
            search.tell([score.value for score in scores])
            record = self._decided(
                "generation",
                f"{phase} {generation}",
                phase=phase,
                generation=generation,
                restart=restart,
                sigma=sigma,
                points=points,
                candidates=[{key: values[key] for key in space.keys} for values in candidates],
                scores=[score.value for score in scores],
                statuses=[score.status for score in scores],
                losses=[_mean_loss(own) for own in outcomes],
                best={"name": self.best.name, "score": self.best.score.value, "values": self.best.values},
            )
            self.recorder.generation(record, space, search, self._best_record())
            self._say(phase, search, budget, scores)
            failures = failures + 1 if all(score.status == FAILED for score in scores) else 0
            if failures >= settings.give_up_after:
                error = next((o["error"] for own in outcomes for o in own if "error" in o), "")
                raise TrainingError(f"every trial of {failures} generations in a row failed, the last with: {error}")
        if search.stopped is not None:
            log.info("phase %s: stopped after %d candidates (%s)", phase, search.evaluations, search.stopped)

    def confirm(self) -> dict[str, Any]:
        """Winner, defaults and baseline on fresh seeds: what the search minimised flatters its winner."""
        assert self.best is not None
        if self.best.score.value is None:
            raise TrainingError(f"no trial finished: see the errors in {self.journal.path}")
        best, count = self.best, self.settings.confirm_seeds if self.seeded else 0
        result: dict[str, Any] = {"best": best.name, "score": best.score.value, "values": best.values}
        first = max(self.settings.seeds) + 1000
        seeds = range(first, first + count)
        if count:
            jobs = [self._job(f"confirm_{name}", seed, values) for seed in seeds for name, values in self._finalists()]
            if self.plain is not None:
                jobs += [self._named("confirm_none", seed, self.plain) for seed in seeds]
            outcomes = self.trials.run(jobs)
            baseline = {seed: outcomes[self._id("confirm_none", seed)] for seed in seeds} if self.plain else {}
            settings = self.settings
            objective = Objective(settings.quality, settings.performance, settings.costs, baseline)
            if all(outcome["status"] != FAILED for outcome in baseline.values()):
                result["fresh_seeds"] = {
                    name: objective.score({seed: outcomes[self._id(f"confirm_{name}", seed)] for seed in seeds}).value
                    for name, _ in self._finalists()
                }
        self._decided("end", "end", **result)
        self.recorder.end(self._best_record(), result)
        log.info("best %s: score %s%s", best.name, _number(best.score.value), _parts(best.score))
        for key, value in best.values.items():
            log.info("  %-40s %s", key, f"{value:.5g}" if isinstance(value, float) else value)
        if fresh := result.get("fresh_seeds"):
            log.info("on fresh seeds: best %s, defaults %s", _number(fresh["best"]), _number(fresh["start"]))
        log.info("to train it: experiment=%s", self.trials.folder / "best.yaml")
        return result

    # -- trials ------------------------------------------------------------------------------------------------------

    def _evaluate(self, name: str, candidates: Sequence[Values]) -> tuple[list[Score], list[list[Record]]]:
        """All candidates with all seeds in one batch; the scores, and the outcomes of each."""
        bounds = self._hopeless_words()
        seeds = self.settings.seeds
        # Integers and options meet again soon: a candidate that was tried before has its outcomes already.
        names = [self.names.setdefault(_key(values), f"{name}_c{index:02d}") for index, values in enumerate(candidates)]
        jobs = {
            self._id(own, seed): self._job(own, seed, values, bounds[seed])
            for own, values in zip(names, candidates, strict=True)
            for seed in seeds
        }
        outcomes = self.trials.run(list(jobs.values()))
        grouped = [{seed: outcomes[self._id(own, seed)] for seed in seeds} for own in names]
        scores = [self.objective.score(own) for own in grouped]
        for own, values, score in zip(names, candidates, scores, strict=True):
            self._consider(own, values, score)
        return scores, [list(own.values()) for own in grouped]

    def _hopeless_words(self) -> dict[int, tuple[str, ...]]:
        """Per seed, the words that tell a training run which loss it must still be able to reach.

        The loss is the one that gives the median (or elite) score at the lowest cost seen so far: a trial that is
        stopped could not have come there whatever it costs.
        """
        rule, seeds = self.settings.hopeless, self.settings.seeds
        known = "hopeless" in (self.cfg.get("callbacks") or {})
        if rule is None or not known or not self.objective.baseline or len(self.finished) < rule.after:
            return dict.fromkeys(seeds, ())
        scores = sorted(score for score, _ in self.finished)
        limit = statistics.median(scores) if rule.against == "median" else scores[len(scores) // 4]
        cheapest = min(cost for _, cost in self.finished)
        found: dict[int, tuple[str, ...]] = {}
        for seed in seeds:
            threshold = self.objective.loss_for(limit, seed, cheapest)
            content = f"threshold:{threshold!r},confidence:{rule.confidence!r},slack:{rule.slack!r}"
            found[seed] = (f"callbacks.hopeless={{{content}}}",)
        return found

    def _job(self, name: str, seed: int, values: Mapping[str, Any], more: tuple[str, ...] = ()) -> Job:
        job = self._named(name, seed, (*self.command.words, *words(values), *more))
        return Job(job.id, job.words, self.space.refusal(values))

    def _named(self, name: str, seed: int, given: Sequence[str]) -> Job:
        return Job(self._id(name, seed), (*given, f"seed={seed}") if self.seeded else tuple(given))

    def _id(self, name: str, seed: int) -> str:
        return f"{name}_seed{seed}" if self.seeded else name

    def _random_points(self, count: int) -> list[Values]:
        draw = random.Random(self.settings.search_seed)
        points: list[Values] = []
        for _ in range(_ATTEMPTS):
            values = self.space.from_unit([draw.random() for _ in self.space.axes])
            if self.space.refusal(values) is None:
                points.append(values)
            if len(points) == count:
                break
        return points

    def _finalists(self) -> list[tuple[str, Values]]:
        assert self.best is not None
        return [("best", self.best.values), ("start", self.space.start)]

    # -- what is known -----------------------------------------------------------------------------------------------

    def _consider(self, name: str, values: Values, score: Score) -> None:
        if score.status == "finished" and score.value is not None:
            self.finished.append((score.value, score.parts.get("cost_ratio", 1.0)))
        known = self.best.score.value if self.best is not None else None
        better = score.status == "finished" and score.value is not None and (known is None or score.value < known)
        if self.best is None or better:
            self.best = Best(name, dict(values), score)

    def _best_record(self) -> dict[str, Any]:
        assert self.best is not None
        return {
            "name": self.best.name,
            "score": self.best.score.value,
            **self.best.score.parts,
            "values": self.best.values,
            "words": [*self.command.words, *words(self.best.values)],
        }

    def _decided(self, kind: str, name: str, **content: Any) -> Record:
        """Put a decision into the journal, or find the same one there.

        Raises:
            ConfigError: the journal has another one.
        """
        for record in self.journal.of_kind(kind):
            if record["name"] != name:
                continue
            for key in ("points", "scores", "influence"):
                if record.get(key) != content.get(key):
                    raise ConfigError(
                        f"{self.journal.path} does not fit this machine: {key} of {name} come out otherwise here "
                        "(another version of a library?); choose another run_dir"
                    )
            return {**record, "replayed": True}
        return self.journal.append(kind, name=name, **content)

    def _say(self, phase: str, search: Search, budget: int, scores: Sequence[Score]) -> None:
        values = [score.value for score in scores if score.value is not None]
        states = [score.status for score in scores]
        notes = "".join(f", {states.count(state)} {state}" for state in ("stopped", FAILED) if state in states)
        assert self.best is not None
        log.info(
            "%s %d/%d candidates: best %s (%s), this generation %s, median %s, sigma %.3g%s",
            phase,
            search.evaluations,
            budget,
            _number(self.best.score.value),
            self.best.name,
            _number(min(values, default=None)),
            _number(statistics.median(values) if values else None),
            search.sigma,
            notes,
        )


def _key(values: Values) -> str:
    return repr(sorted(values.items()))


def _seed_of(phase: str, seed: int) -> int:
    return (seed + int.from_bytes(hashlib.sha256(phase.encode()).digest()[:4], "big")) % 2**32


def _mean_loss(outcomes: Sequence[Record]) -> float | None:
    losses = [outcome["value"] for outcome in outcomes if outcome.get("value") is not None]
    return statistics.fmean(losses) if len(losses) == len(outcomes) else None


def _number(value: float | None) -> str:
    return "failed" if value is None else f"{value:.5g}"


def _parts(score: Score) -> str:
    return "".join(f", {name.replace('_', ' ')} {value:.4g}" for name, value in score.parts.items())
