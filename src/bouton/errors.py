"""Errors that a user can cause. Each is one line: the field, the value, and what would be valid.

The command line prints ``error: <message>`` and exits with 1; ``HYDRA_FULL_ERROR=1`` shows the traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BoutonError(Exception):
    """Base of all errors whose message is meant for the user."""


class ConfigError(BoutonError):
    """A configuration value that is unknown, out of range, or contradicts another."""


class SocketError(BoutonError):
    """Mechanisms that cannot be plugged into this body together."""


class DataError(BoutonError):
    """Data that is missing, empty, corrupt, or cannot be written."""


class CheckpointError(BoutonError):
    """A checkpoint that is missing, corrupt, or belongs to another configuration."""


class KernelError(BoutonError):
    """A kernel backend that was asked for and cannot be used."""


class TrainingError(BoutonError):
    """A training run that had to stop."""


class InterruptedRunError(TrainingError):
    """A training run that was asked to stop and saved its state; the message says how to go on."""


class EvaluationError(BoutonError):
    """A task that this run cannot be measured with."""


def suggest(name: str, known: Iterable[str]) -> str:
    """The tail of an error about an unknown ``name``: the nearest match, then all known names."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"{hint}known: {', '.join(names) if names else '(none)'}"
