"""``mechanism=presyn+hebb``: a Hydra config source that resolves ``a+b`` into the defaults list ``[a, b]``.

The source opens no file. Asked for ``mechanism/presyn+hebb`` it answers an empty config whose defaults list holds the
terms, sorted, and Hydra composes the rest: so it works on the command line, in grids, in experiment files and in
``compose`` alike. It also stands in for mechanisms of other packages that are registered but bring no YAML: their
option is made from their ``Params``. And ``experiment=<path of a YAML file>`` takes an experiment from anywhere, such
as the ``best.yaml`` of a search; ``model=<run folder>`` and ``mechanism=<run folder>`` take what a run had.
"""

# Hydra imports this module while it scans its plugins: standard library, omegaconf and Hydra's interfaces only.
from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from bouton.config.inherit import INHERITED
from bouton.config.paths import conf_dir
from bouton.errors import ConfigError

GROUPS = ("mechanism", "logger", "callbacks", "sweep")
NONE = "none"
EXPERIMENT = "experiment"
_SCHEME = "bouton"
_LIST_OVERRIDE = re.compile(rf"^\+{{0,2}}({'|'.join(GROUPS)})=\[(.*)\]$")


def canonical_terms(expression: str, group: str = "mechanism") -> list[str]:
    """The sorted terms of ``a+b+c``; ``none`` has no term.

    Raises:
        ConfigError: an empty term, a term twice, or ``none`` among others.
    """
    terms = [term.strip() for term in expression.split("+")]
    if terms == [NONE]:
        return []
    if "" in terms:
        raise ConfigError(f"{group}={expression} has an empty term: write {'+'.join(filter(None, terms)) or NONE}")
    if NONE in terms:
        others = [term for term in terms if term != NONE]
        raise ConfigError(f"{group}={expression} adds to none: write {'+'.join(others) or NONE}")
    for term in terms:
        if terms.count(term) > 1:
            raise ConfigError(f"{group}={expression} has '{term}' twice: write {'+'.join(dict.fromkeys(terms))}")
    return sorted(terms)


def check_lists(overrides: Iterable[str]) -> None:
    """Hold overrides in list form, ``mechanism=[a,b]``, to the rules of ``a+b``: Hydra merges duplicates silently.

    Raises:
        ConfigError: as :func:`canonical_terms`.
    """
    for override in overrides:
        match = _LIST_OVERRIDE.match(override.replace(" ", ""))
        if match and match[2]:
            canonical_terms("+".join(term.strip("'\"") for term in match[2].split(",")), match[1])


class CompositionSource(ConfigSource):
    """Answers ``<group>/a+b``, ``<group>/none``, and ``mechanism/x`` for a registered ``x`` without a YAML."""

    @staticmethod
    def scheme() -> str:
        """The prefix of this source in a search path."""
        return _SCHEME

    def available(self) -> bool:
        """Always: nothing has to exist on disk."""
        return True

    def is_group(self, config_path: str) -> bool:
        """Whether options of ``config_path`` can be added up."""
        return config_path in GROUPS

    def is_config(self, config_path: str) -> bool:
        """Whether :meth:`load_config` answers ``config_path``; files of the same name go before."""
        if _experiment_file(config_path) is not None or _run_file(config_path) is not None:
            return True
        group, name = _split(config_path)
        if group not in GROUPS:
            return False
        return "+" in name or name == NONE or (group == "mechanism" and name.isidentifier() and name in _registered())

    def load_config(self, config_path: str) -> ConfigResult:
        """The option at ``config_path``: a defaults list for a sum, the parameters for a registered mechanism."""
        if (file := _experiment_file(config_path)) is not None:
            return self._load_file(file)
        if (file := _run_file(config_path)) is not None:
            return self._load_part(file, config_path.partition("/")[0])
        group, name = _split(config_path)
        if not self.is_config(config_path):
            raise ConfigLoadError(f"Config not found : {config_path}")
        if "+" in name or name == NONE:
            terms = canonical_terms(name, group)
            content: dict[str, Any] = {"defaults": list(terms)} if terms else {}
        else:
            content = {name: _registered()[name].Params.defaults()}
        return ConfigResult(
            provider=self.provider,
            path=f"{self.scheme()}://{self.path}",
            config=OmegaConf.create(content),
            header={"package": None},
        )

    def _load_file(self, file: Path) -> ConfigResult:
        text = file.read_text()
        package = re.search(r"^\s*#\s*@package\s+(\S+)", text, re.MULTILINE)
        return ConfigResult(
            provider=self.provider,
            path=f"{self.scheme()}://{self.path}",
            config=OmegaConf.create(text),
            header={"package": package[1] if package else None},
        )

    def _load_part(self, file: Path, group: str) -> ConfigResult:
        return ConfigResult(
            provider=self.provider,
            path=f"{self.scheme()}://{self.path}",
            config=OmegaConf.create(OmegaConf.select(OmegaConf.load(file), group) or {}),
            header={"package": None},
        )

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """The names below ``config_path`` that only this source knows."""
        if config_path == "":
            return [] if results_filter == ObjectType.CONFIG else sorted(GROUPS)
        if config_path not in GROUPS or results_filter == ObjectType.GROUP:
            return []
        return sorted({NONE, *(_registered() if config_path == "mechanism" else ())})


class CompositionSearchPath(SearchPathPlugin):
    """Adds the source to applications whose main configuration is this package's, and to no other Hydra program."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the source after ``main``: a hand-written ``conf/mechanism/a+b.yaml`` goes before."""
        main = next((entry for entry in search_path.get_path() if entry.provider == "main"), None)
        if main is not None and (main.path or "").removeprefix("file://") == str(conf_dir()):
            search_path.append(provider=_SCHEME, path=f"{_SCHEME}://composition")


def _experiment_file(config_path: str) -> Path | None:
    """The file that ``experiment=<path>`` means, relative to the working directory; None for the name of an option."""
    group, _, rest = config_path.partition("/")
    if group != EXPERIMENT or ("/" not in rest and not rest.endswith((".yaml", ".yml"))):
        return None
    stem = Path(rest).expanduser()
    return next((file for file in (stem, stem.with_name(f"{stem.name}.yaml")) if file.is_file()), None)


def _run_file(config_path: str) -> Path | None:
    """The configuration that ``model=<run folder>`` means; None for the name of an option."""
    group, _, rest = config_path.partition("/")
    if group not in INHERITED or "/" not in rest:
        return None
    return next(
        (file for folder in (rest, rest.removesuffix(".yaml")) if (file := Path(folder) / "config.yaml").is_file()),
        None,
    )


def _split(config_path: str) -> tuple[str, str]:
    group, _, name = config_path.removesuffix(".yaml").rpartition("/")
    return group, name


def _registered() -> dict[str, Any]:
    from bouton.mechanisms.registry import mechanisms  # imports torch, so only when a name has no file

    return dict(mechanisms())
