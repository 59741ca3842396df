"""One line for each way in which a configuration can be wrong: the name, the nearest match, and what is known."""

from __future__ import annotations

import errno
import re
import traceback

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from bouton.config import paths
from bouton.config.composition import GROUPS
from bouton.errors import BoutonError, suggest

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS, errno.EPERM}
_NOT_A_PART = "Could not override '([^']+)'. No match in the defaults list"
_AMBIGUOUS = r"Ambiguous value for argument '([^=']+)=([^']*)'"


def explain(error: BaseException) -> str | None:
    """The one-line message for an error that a user's configuration caused; None for any other error."""
    if isinstance(error, BoutonError):
        return one_line(str(error))
    if isinstance(error, MissingConfigException):
        return _missing_option(error)
    if isinstance(error, OverrideParseException):
        return _unreadable(error)
    if isinstance(error, HydraException):
        unknown = _unknown_key(error)
        if unknown:
            return unknown
        if match := re.search(_AMBIGUOUS, str(error)):
            return f"{match[1]}={match[2]} holds several values: add -m for a run each, or make a list, [{match[2]}]"
        if match := re.search(_NOT_A_PART, str(error)):
            return f"'{match[1]}' is a group that this configuration does not use: add it with +{match[1]}=..."
        cause = f": {one_line(str(error.__cause__))}" if error.__cause__ is not None else ""
        return one_line(str(error)) + cause
    if isinstance(error, OmegaConfBaseException):
        return one_line(str(error))
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        if _made_by_hydra(error):
            return f"run_dir cannot be made{where}: {error.strerror}; choose another folder"
        if error.errno in _DISK:
            return f"{error.strerror}{where}: what was written before is whole, ckpt_path=last continues a run from it"
    if isinstance(error, ValueError) and _raised_in_hydra(error):
        if str(error).startswith("Config group override must be"):
            return "a group takes the name of an option, or a list of names; for nothing at all write none"
        return one_line(str(error))
    return None


def one_line(text: str) -> str:
    """``text`` without line breaks and runs of blanks."""
    return " ".join(text.split())


def _made_by_hydra(error: OSError) -> bool:
    """Whether it was Hydra that could not make the run folder or write into it."""
    modules = [str(frame.f_globals.get("__name__", "")) for frame, _ in traceback.walk_tb(error.__traceback__)]
    own = [name for name in modules if name.startswith(("hydra.", "bouton."))]
    return bool(own) and own[-1].startswith("hydra.")


def _raised_in_hydra(error: BaseException) -> bool:
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and str(frames[-1].f_globals.get("__name__", "")).startswith("hydra.")


def _unreadable(error: OverrideParseException) -> str:
    reason = one_line(str(error).partition("\nSee https://")[0])
    if "missing EQUAL" in reason:
        return f"'{error.override}' has no value: write {error.override}=..."
    return f"'{error.override}' cannot be read ({reason}): quote values with blanks or brackets, 'key=\"a b\"'"


def _missing_option(error: MissingConfigException) -> str:
    path = (error.missing_cfg_file or "").removesuffix(".yaml")
    group, _, name = path.rpartition("/")
    if not group:
        return f"configuration '{path}' is unknown: {suggest(path, paths.options('.'))}"
    known = set(error.options or ()) | set(paths.options(group))
    if group == "mechanism":
        from bouton.mechanisms.registry import mechanisms, unknown

        if name:
            return unknown(name)
        known |= set(mechanisms())
    if group in GROUPS:
        known.add("none")
    if not name:
        return f"{group}= is empty: {suggest(name, known)}"
    return f"{group} option '{name}' is unknown: {suggest(name, known)}"


def _unknown_key(error: HydraException) -> str | None:
    """For an override of a key that does not exist: what exists at that place."""
    cause = error.__cause__
    if not isinstance(cause, ConfigAttributeError | ConfigKeyError) or cause.parent_node is None:
        return None
    full_key, key, parent = str(cause.full_key), str(cause.key), cause.parent_node
    if not isinstance(parent, DictConfig):
        return f"{full_key} is unknown: {one_line(str(cause).splitlines()[0])}"
    siblings = sorted(str(name) for name in parent if name != "hydra")
    if full_key == f"mechanism.{key}":
        return _absent_mechanism(key, siblings)
    hint = suggest(key, siblings)
    if full_key == f"kernels.{key}":
        hint += f"; for an op of another package write +{full_key}=..."
    return f"{full_key} is unknown: {hint}"


def _absent_mechanism(name: str, present: list[str]) -> str:
    from bouton.mechanisms.registry import mechanisms, unknown

    if name not in mechanisms():
        return unknown(name)
    chosen = "+".join(present) or "none"
    return f"mechanism.{name} is not part of mechanism={chosen}: choose mechanism={'+'.join(sorted([*present, name]))}"
