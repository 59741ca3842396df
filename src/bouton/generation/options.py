"""The options of generation by name, as notebooks and the command line give them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bouton.errors import ConfigError, suggest
from bouton.generation.sampling import Sampling

DECODING = ("max_new_tokens", "stop", "seed", "batch_size")


def split_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options by name -> those of :func:`bouton.generation.stream`, and the fields of :class:`Sampling`.

    A single ``stop`` string becomes a list of one; an option that is None is left out, so that its default holds.

    Raises:
        ConfigError: an unknown name.
    """
    fields = Sampling.specs()
    for name in options:
        if name not in DECODING and name not in fields:
            raise ConfigError(f"option '{name}' of generate is unknown: {suggest(name, [*DECODING, *fields])}")
    given = {name: value for name, value in options.items() if value is not None}
    if isinstance(given.get("stop"), str):
        given["stop"] = [given["stop"]]
    decoding = {name: value for name, value in given.items() if name in DECODING}
    return decoding, {name: value for name, value in given.items() if name in fields}
