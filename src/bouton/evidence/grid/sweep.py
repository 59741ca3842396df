"""The study behind ``hydra/sweeper=grid``: the same command means the same folder and the same runs in it."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from bouton.config import finish
from bouton.config.naming import safe
from bouton.errors import ConfigError, TrainingError
from bouton.evidence.arms import Arm, flatten
from bouton.evidence.frame import CRASHED, FINISHED, is_run, load, read_config, status_of
from bouton.evidence.grid.arms import EACH, EVERYTHING, LEAVE_ONE_OUT, PAIRS, Planned, builds, cross, expand
from bouton.evidence.grid.controls import check_kinds, plan
from bouton.evidence.grid.job import RecordedJob
from bouton.files import write_json, write_text

log = logging.getLogger(__name__)

# Not part of what a study is: the axes of the grid, where it writes, and how it shows progress.
_NO_IDENTITY = (
    "seed", "mechanism", "run_dir", "ckpt_path", "logger", "callbacks.progress", "data.cache_dir", LEAVE_ONE_OUT,
)  # fmt: skip
_LAUNCHES_IN_VAIN = 3
# May differ between a finished run and the one that is asked for.
_MAY_DIFFER = ("run_dir", "ckpt_path", "logger", "callbacks.progress", "model.vocab_size", "data.cache_dir", "kernels")


@dataclass(frozen=True)
class Run:
    """A run of the study: its folder's name, its arm and seed, and all words that make it."""

    name: str
    arm: Arm
    seed: int
    words: tuple[str, ...]


class Grid:
    """One call of the command.

    Args:
        options: the fields of ``hydra.sweeper``.
    """

    def __init__(
        self, options: Mapping[str, Any], context: HydraContext, task: TaskFunction, config: DictConfig
    ) -> None:
        self.options, self.context, self.task, self.config = options, context, task, config

    def run(self, arguments: Sequence[str]) -> pd.DataFrame:
        """Make what is missing of the study, then its controls; returns the table of its runs.

        Raises:
            ConfigError: an arm that does not exist or does not compose, or a folder with other runs.
            TrainingError: runs crashed; all others are done.
        """
        check_kinds(self.options["controls"])
        fixed, sweeps = self._split(arguments)
        fixed = [word for word in fixed if not re.match(rf"\+*{LEAVE_ONE_OUT}=", word)]
        seeds = self._seeds(sweeps.pop("seed", []) or [word for word in fixed if word.startswith("seed=")])
        shared = [word for word in _without(fixed, "mechanism") if not _parameter_of(word)]
        base = self._composed([*shared, "mechanism=none"])
        arms = self._arms(sweeps, fixed, base)
        self.folder = self._folder(base, fixed)
        fixed = _without(fixed, "mechanism", "seed", "ckpt_path")
        runs = [self._run(planned, seed, fixed) for seed in seeds for planned in arms]
        self._check(runs)
        self._begin(runs)
        self._make(runs, runs)
        if self.options["controls"]:
            frame = load(self.folder)
            own = frame[frame["arm"].isin({p.arm.label for p in arms})]
            controls = [Planned(c.arm(), ("mechanism=none", *c.arm().overrides.split(), *c.words))
                        for c in plan(self.folder, own, self.options["controls"])]  # fmt: skip
            extra = [self._run(planned, seed, fixed) for seed in seeds for planned in controls]
            if extra:
                self._check(extra)
                self._make(extra, [*runs, *extra])
                runs += extra
        return self._end(runs)

    # -- which runs ---------------------------------------------------------------------------------------------

    def _split(self, arguments: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
        """Words that hold for every run, and the swept ones by key."""
        given = {str(key): value for key, value in self.options["params"].items()}
        words = [*(f"{key}={value}" for key, value in given.items()), *arguments]
        parsed: list[Override] = OverridesParser.create(config_loader=self.context.config_loader).parse_overrides(words)
        fixed: list[str] = []
        sweeps: dict[str, list[str]] = {}
        for override in parsed:
            key = override.get_key_element()
            if not override.is_sweep_override():
                sweeps.pop(key, None)
                fixed.append(str(override.input_line))
            elif override.is_discrete_sweep():
                sweeps[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
            else:
                raise ConfigError(f"{override.input_line}: a grid takes lists of values, a,b,c or range(a,b)")
        return fixed, sweeps

    def _seeds(self, words: Sequence[str]) -> list[int]:
        texts = list(dict.fromkeys(word.partition("=")[2] for word in words))
        for text in texts:
            if not text.isdecimal():
                raise ConfigError(f"seed = {text} is not valid: an integer >= 0")
        if texts:
            return [int(text) for text in texts]
        count = self.options["seeds"]
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ConfigError(f"hydra.sweeper.seeds = {count!r} is not valid: an integer >= 1")
        return list(range(count))

    def _arms(self, sweeps: dict[str, list[str]], fixed: list[str], base: Mapping[str, Any]) -> list[Planned]:
        typed = sweeps.pop("mechanism", None) or [word for word in fixed if word.startswith("mechanism=")]
        entries = [word.partition("=")[2] for word in typed]
        if not entries:
            entries = list(self.options["arms"] or [])
        if not entries:
            raise ConfigError(
                f"the grid has no arms: give mechanism=a,b, or hydra.sweeper.arms=[none,{EACH},{PAIRS},{EVERYTHING}]"
            )
        if self.config.get(LEAVE_ONE_OUT):
            entries.append(LEAVE_ONE_OUT)
        arms, self.left_out = expand(entries, builds(base["model"]))
        return cross(arms, sweeps)

    def _run(self, planned: Planned, seed: int, fixed: Sequence[str]) -> Run:
        label = planned.arm.label
        slug = label if re.fullmatch(r"[\w+.@-]{1,80}", label) else f"{safe(label)}_{_digest(label, 6)}"
        name = f"{slug}_seed{seed}"
        places = [f"hydra.sweep.dir={_quoted(str(self.folder))}", f"hydra.sweep.subdir={_quoted(name)}"]
        present = planned.arm.mechanism.split("+")
        own = [word for word in fixed if _parameter_of(word) in (None, *present)]
        # The mechanism first: parameters among the fixed words are its own.
        return Run(name, planned.arm, seed, (planned.words[0], *own, *planned.words[1:], f"seed={seed}", *places))

    def _folder(self, base: Mapping[str, Any], fixed: Sequence[str]) -> Path:
        """``run_dir``, or a folder in ``runs/`` named after the experiment and all settings that the runs share."""
        if (given := base.get("run_dir")) is not None:
            return Path(str(given))
        settings = {k: v for k, v in flatten(base).items() if not any(k == n or k.startswith(f"{n}.")
                                                                      for n in _NO_IDENTITY)}  # fmt: skip
        parameters = sorted(word for word in fixed if word.startswith("mechanism."))
        experiment = self.config.hydra.runtime.choices.get("experiment") or "grid"
        return Path("runs") / f"{safe(str(experiment))}_{_digest(json.dumps([settings, parameters], default=str), 8)}"

    # -- before anything is run ---------------------------------------------------------------------------------

    def _composed(self, words: Sequence[str]) -> dict[str, Any]:
        config = self.context.config_loader.load_sweep_config(self.config, list(words))
        with open_dict(config):
            del config["hydra"]
        finish(config)
        plain = OmegaConf.to_container(config, resolve=True)
        assert isinstance(plain, dict)
        return {str(key): value for key, value in plain.items()}

    def _check(self, runs: Sequence[Run]) -> None:
        """Compose every arm once, and compare what is in the folders already with what is asked for.

        Raises:
            ConfigError: an arm does not compose, or a run in the folder has another configuration.
        """
        composed: dict[str, dict[str, Any]] = {}
        for run in runs:
            if run.arm.label not in composed:
                composed[run.arm.label] = self._composed(run.words)
                there = sorted(composed[run.arm.label]["mechanism"] or {})
                if ("+".join(there) or "none") != run.arm.mechanism:
                    raise ConfigError(
                        f"the experiment sets parameters of {' and '.join(there)}, which puts them into arm "
                        f"'{run.arm.label}', too: write them behind the mechanism in hydra.sweeper.arms"
                    )
            folder = self.folder / run.name
            if not (folder / "config.yaml").is_file():
                continue
            old, new = flatten(read_config(folder)), flatten({**composed[run.arm.label], "seed": run.seed})
            for key in sorted(old.keys() | new.keys()):
                free = any(key == name or key.startswith(f"{name}.") for name in _MAY_DIFFER)
                if not free and old.get(key) != new.get(key):
                    raise ConfigError(
                        f"{folder} holds a run with {key} = {old.get(key)!r}, this grid has {new.get(key)!r}: "
                        f"choose another run_dir, or remove that run"
                    )

    def _begin(self, runs: Sequence[Run]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / "multirun.yaml", OmegaConf.to_yaml(self.config))
        arms = list(dict.fromkeys(run.arm.label for run in runs))
        seeds = sorted({run.seed for run in runs})
        record = {"arms": arms, "seeds": seeds, "left_out": self.left_out}
        write_json(self.folder / "grid.json", record)
        states = [self._state(run) for run in runs]
        parts = [
            f"{states.count(state)} {word}"
            for state, word in ((FINISHED, "finished"), (CRASHED, "crashed, run again"), ("begun", "begun, go on"))
            if state in states
        ]
        print(
            f"grid of {len(arms)} arms x {len(seeds)} seeds in {self.folder}"
            + (f": {'; '.join(parts)}" if parts else "")
        )
        for name, reason in self.left_out.items():
            print(f"left out: {name} ({reason})")

    def _state(self, run: Run) -> str:
        folder = self.folder / run.name
        if not is_run(folder):
            return "missing"
        state = status_of(folder)
        return state if state in (FINISHED, CRASHED) else "begun"

    # -- running ------------------------------------------------------------------------------------------------

    def _make(self, runs: Sequence[Run], known: Sequence[Run]) -> None:
        """Launch what has not finished; a launcher that dies under its jobs, as when a worker is killed, again.

        After three launches in which no run got done the error ends the grid.
        """
        tried: set[str] = set()
        in_vain = 0
        while pending := [run for run in runs if self._state(run) != FINISHED and run.name not in tried]:
            before = self._done(runs)
            try:
                for result in self._launcher(known).launch([list(run.words) for run in pending], initial_job_idx=0):
                    _ = result.return_value  # raises what went wrong outside the job, which records its own errors
                return
            except Exception as error:  # of the launcher itself: jobs record their own
                tried |= {run.name for run in pending if self._state(run) == CRASHED}
                in_vain = in_vain + 1 if self._done(runs) == before else 0
                if in_vain == _LAUNCHES_IN_VAIN:
                    if isinstance(error, BrokenExecutor):  # a worker was killed
                        raise TrainingError(
                            f"a worker of the launcher ended without an error (killed, or out of memory?): "
                            f"the same command goes on in {self.folder}"
                        ) from error
                    raise
                log.warning("the launcher failed (%s: %s); the remaining runs are launched again",
                            type(error).__name__, " ".join(str(error).split())[:200])  # fmt: skip

    def _done(self, runs: Sequence[Run]) -> int:
        return sum(self._state(run) in (FINISHED, CRASHED) for run in runs)

    def _launcher(self, runs: Sequence[Run]) -> Any:
        arms = {run.name: run.arm for run in runs}
        numbers = {run.name: index + 1 for index, run in enumerate(runs)}
        with open_dict(self.config):
            self.config.hydra.sweep.dir = str(self.folder)
        return Plugins.instance().instantiate_launcher(
            hydra_context=self.context,
            task_function=RecordedJob(self.task, arms, numbers, len(runs)),
            config=self.config,
        )

    def _end(self, runs: Sequence[Run]) -> pd.DataFrame:
        states = {run.name: self._state(run) for run in runs}
        bad = [name for name, state in states.items() if state != FINISHED]
        print(f"{len(runs) - len(bad)} of {len(runs)} runs finished; the report: bouton report {self.folder}")
        if bad:
            raise TrainingError(
                f"{len(bad)} of {len(runs)} runs crashed ({', '.join(bad[:5])}{', ...' if len(bad) > 5 else ''}): see "
                f"traceback.txt in {self.folder}/...; the same command runs them again and keeps the others"
            )
        return load(self.folder)


def _without(words: Sequence[str], *keys: str) -> list[str]:
    return [word for word in words if not re.match(rf"\+*({'|'.join(keys)})=", word)]


def _parameter_of(word: str) -> str | None:
    """The mechanism of which ``word`` sets a parameter."""
    match = re.match(r"\+*mechanism\.(\w+)", word)
    return match[1] if match else None


def _digest(text: str, length: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def _quoted(text: str) -> str:
    escaped = text.replace('"', '\\"')
    return f'"{escaped}"'
