"""Names that a configuration gives to its run: equal configurations get equal names, however they were typed."""

from __future__ import annotations

import re
from typing import Any

from omegaconf import DictConfig, OmegaConf

_MAX_LENGTH = 80


def canonical_name(cfg: DictConfig) -> str:
    """``hebb+presyn`` for these two mechanisms in any order and notation; ``none`` without any."""
    return "+".join(sorted(str(name) for name in cfg.get("mechanism") or {})) or "none"


def safe(name: str) -> str:
    """``name`` with only letters, digits and ``+ - _ .``, so that shells, URLs and Hydra take it unquoted."""
    return re.sub(r"[^\w+.-]+", "-", name, flags=re.ASCII)[:_MAX_LENGTH].strip("-.")


def _run_name(*, _root_: DictConfig) -> str:
    domain = _root_.get("domain") or {}
    return safe(str(domain.get("name") or canonical_name(_root_)))


def _first(given: Any, otherwise: Any) -> Any:
    return otherwise if given is None else given


def register_resolvers() -> None:
    """Make ``${bouton.name:}`` (canonical, safe; of a domain its name) and ``${bouton.first:value,fallback}`` known to
    OmegaConf."""
    OmegaConf.register_new_resolver("bouton.name", _run_name, replace=True)
    OmegaConf.register_new_resolver("bouton.first", _first, replace=True)
