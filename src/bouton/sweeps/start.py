"""What ``hydra/sweeper=cmaes`` does with the words of a command: read them, find the folder, search in it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from hydra.core.plugins import Plugins
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from bouton.config import elastic
from bouton.errors import ConfigError
from bouton.sweeps.command import build_space, plain_words, read_command, removals
from bouton.sweeps.folder import find_folder
from bouton.sweeps.journal import NAME, Journal, exclusive
from bouton.sweeps.launching import Trials
from bouton.sweeps.record import Recorder
from bouton.sweeps.settings import Settings, read_settings
from bouton.sweeps.space import words
from bouton.sweeps.sweep import Sweep
from bouton.sweeps.trial import Trial

log = logging.getLogger("bouton.sweeps")


def run_sweep(
    given: Mapping[str, Any],
    arguments: Sequence[str],
    hydra_context: HydraContext,
    task_function: TaskFunction,
    config: DictConfig,
) -> dict[str, Any]:
    """What ``hydra/sweeper=cmaes`` does with the words of the command.

    Args:
        given: ``hydra.sweeper``.
        arguments: the words about the application's own configuration.
        task_function: one job.
        config: the configuration of the multirun, Hydra's node included.

    Returns:
        ``best`` (its name), ``score``, ``values``, and ``fresh_seeds`` where the winner was confirmed.

    Raises:
        BoutonError: the command cannot be searched, the gate stopped it, or every trial fails.
    """
    if elastic.inside():
        raise ConfigError("a search starts its own processes: run it without torchrun")
    settings = read_settings(OmegaConf.to_container(OmegaConf.create(dict(given)), resolve=True))  # type: ignore[arg-type]
    command = read_command(arguments)

    def compose(sentence: Sequence[str]) -> DictConfig:
        return hydra_context.config_loader.load_sweep_config(config, list(sentence))

    cfg = compose(command.words)
    seeded = "seed" in cfg
    seeds = command.seeds or (settings.seeds if seeded else settings.seeds[:1])
    settings = Settings(**{**vars(settings), "seeds": seeds})
    space = build_space(command, cfg)
    plain = None
    if cfg.get("mechanism") is not None:
        without = plain_words(command)
        plain = (*without, *removals(compose(without)))
    compose([*command.words, *words(space.start)])  # a range of an unknown key is refused here
    header = {
        "words": sorted(command.words),
        "settings": settings.describe(),
        "space": space.describe(),
        "configuration": _fingerprint(cfg),
        "cma": version("cma"),
    }
    folder, fresh = find_folder(config, cfg, header)
    with exclusive(folder / ".search.lock", f"run_dir = {folder}: another process works on this search"):
        journal = Journal(folder / NAME)
        journal.refresh()
        if fresh:
            journal.append("header", **header)
        else:
            log.info("continuing the search in %s: %d trials are there", folder, len(journal.trials))
        with read_write(config), open_dict(config):
            config.hydra.sweep.dir = str(folder)
        OmegaConf.save(config, folder / "multirun.yaml")
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=Trial(task_function), config=config
        )
        recorder = Recorder(folder, cfg, compose)
        sweep = Sweep(
            settings, command, cfg, plain, space, Trials(launcher, journal, folder), journal, recorder, seeded
        )
        try:
            return sweep.run()
        finally:
            recorder.close()


def _fingerprint(cfg: DictConfig) -> str:
    """Of everything in the configuration that is not Hydra's, nor a folder."""
    plain = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(plain, dict)
    own = {key: value for key, value in plain.items() if key not in ("hydra", "run_dir", "seed", "ckpt_path")}
    return hashlib.sha256(repr(own).encode()).hexdigest()[:16]
