"""The registry of mechanisms: built-in ones, and those that other packages offer under ``bouton.mechanisms``."""

from __future__ import annotations

import importlib
import pkgutil
from importlib.metadata import entry_points
from typing import TypeVar

from bouton.errors import BoutonError, ConfigError, suggest
from bouton.mechanisms.base import Mechanism

ENTRY_POINT_GROUP = "bouton.mechanisms"
# Modules of this package that hold no mechanism.
_INFRASTRUCTURE = {"base", "new", "parameters", "registry", "vitals", "yaml"}

_registry: dict[str, type[Mechanism]] = {}
_packages: dict[str, str] = {}  # mechanism of another package -> that package and its version
_broken: list[str] = []  # entry points that cannot be imported: which, of what package, and why
_discovered = False

M = TypeVar("M", bound=type[Mechanism])


def register(cls: M) -> M:
    """Class decorator that makes a mechanism known under its ``name``.

    Raises:
        ConfigError: the name is missing, unusable in ``mechanism=a+b``, or taken by another class.
    """
    name = getattr(cls, "name", "")
    if not name.isidentifier() or name == "none":
        raise ConfigError(f"{cls.__qualname__}.name = {name!r} is not valid: use a Python identifier other than 'none'")
    known = _registry.get(name)
    if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ConfigError(f"mechanism '{name}' is defined twice: in {known.__module__} and in {cls.__module__}")
    _registry[name] = cls
    return cls


def mechanisms() -> dict[str, type[Mechanism]]:
    """All registered mechanisms: name -> class, sorted by name."""
    _discover()
    return dict(sorted(_registry.items()))


def get(name: str) -> type[Mechanism]:
    """The class of mechanism ``name``.

    Raises:
        ConfigError: no such mechanism; the message has the nearest match and all known names.
    """
    known = mechanisms()
    if name not in known:
        raise ConfigError(unknown(name))
    return known[name]


def unknown(name: str) -> str:
    """The message for a name that no mechanism has: the nearest match, all known names, and packages that failed."""
    return "; ".join([f"mechanism '{name}' is unknown: {suggest(name, [*mechanisms(), 'none'])}", *_broken])


def packages() -> dict[str, str]:
    """The mechanisms that other packages provide: name -> package and version."""
    mechanisms()
    return dict(sorted(_packages.items()))


def _discover() -> None:
    """Import every built-in mechanism module and every installed entry point, once."""
    global _discovered
    if _discovered:
        return
    _discovered = True
    package = importlib.import_module("bouton.mechanisms")
    for module in pkgutil.iter_modules(package.__path__):
        if not module.name.startswith("_") and module.name not in _INFRASTRUCTURE:
            importlib.import_module(f"bouton.mechanisms.{module.name}")
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        origin = f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else "of unknown name"
        before = set(_registry)
        try:
            entry.load()  # importing the class runs its @register
        except BoutonError:
            raise
        except Exception as error:  # it must not take the other mechanisms with it; whoever asks for it is told
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            _broken.append(
                f"package '{origin}' offers '{entry.name}', which cannot be imported from {entry.value} ({reason})"
            )
        _packages.update(dict.fromkeys(set(_registry) - before, origin))
