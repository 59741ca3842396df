"""Whether the optional libraries are there."""

from __future__ import annotations

from importlib.util import find_spec

from bouton.errors import ConfigError


def require_transformers() -> None:
    """Raise ConfigError, in one line, where transformers is not installed."""
    require("transformers", "hub", "Hugging Face export")


def require(package: str, extra: str, what: str) -> None:
    """Raise ConfigError, in one line, where the ``package`` of the ``extra`` is not installed."""
    if find_spec(package) is None:
        raise ConfigError(f"{what} needs the package {package}: pip install 'bouton[{extra}]'")
