"""Domains: what an associative graph learns by local rules beside language, each with its trivial baselines.

``python train.py experiment=substrate/tictactoe`` runs one; :mod:`bouton.domains.base` says what a domain is.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from bouton.domains.base import Domain, Outcome, Recorder
from bouton.errors import ConfigError, suggest

__all__ = ["DOMAINS", "Domain", "Outcome", "Recorder", "domain"]

DOMAINS: dict[str, str] = {
    "basic_motions": "bouton.domains.motion.wrist:BasicMotions",
    "clips": "bouton.domains.motion.clips:Clips",
    "digits": "bouton.domains.audio.digits:Digits",
    "shapes": "bouton.domains.motion.shapes:Shapes",
    "tones": "bouton.domains.audio.tones:Tones",
    "mnist": "bouton.domains.images.mnist:Mnist",
    "sentences": "bouton.domains.sentences.domain:Sentences",
    "tictactoe": "bouton.domains.tictactoe.domain:TicTacToe",
}
"""Name in the configuration -> module and class."""


def domain(config: Mapping[str, Any], *, seed: int = 0, threads: int = 0) -> Domain:
    """The domain that ``domain.name`` names, with the fields beside it.

    Raises:
        ConfigError: an unknown name or field, or a value out of its range.
    """
    name = str(config.get("name"))
    if name not in DOMAINS:
        raise ConfigError(f"domain.name = {name!r} is unknown: {suggest(name, DOMAINS)}")
    module, _, cls = DOMAINS[name].partition(":")
    kind: type[Domain] = getattr(importlib.import_module(module), cls)
    return kind(kind.Settings.from_config({k: v for k, v in config.items() if k != "name"}, "domain"), seed, threads)
