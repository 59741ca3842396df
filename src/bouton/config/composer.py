"""``bouton.compose``: the configuration that the same overrides give on the command line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from bouton.config.composition import check_lists
from bouton.config.inherit import inherit, use_tokenizer
from bouton.config.messages import explain
from bouton.config.paths import conf_dir
from bouton.errors import BoutonError, ConfigError


def compose(*overrides: str, config_name: str = "train") -> DictConfig:
    """Compose a configuration, e.g. ``compose("mechanism=presyn+hebb", "model.num_layers=2")``.

    Can be called any number of times, in notebooks and inside running Hydra applications.

    Args:
        overrides: the same words as on the command line.
        config_name: the primary configuration in ``conf/``.

    Returns:
        The configuration without Hydra's own node. Unknown keys cannot be set on it.

    Raises:
        ConfigError: an unknown name or option, a malformed override, or an invalid mechanism parameter.
    """
    try:
        check_lists(overrides)
        with _own_hydra(), hydra.initialize_config_dir(str(conf_dir()), job_name=config_name, version_base="1.3"):
            cfg = hydra.compose(config_name, inherit(list(overrides)))
        finish(cfg)
        return cfg
    except BoutonError:
        raise
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        raise ConfigError(message) from error


def finish(cfg: DictConfig) -> None:
    """Bring ``cfg.mechanism`` into canonical order and check it against the parameters that the mechanisms declare;
    with ``init_from`` set the tokenizer of the data.

    Raises:
        ConfigError: an unknown mechanism, an unknown parameter, or a value out of range.
    """
    use_tokenizer(cfg)
    mechanisms = cfg.get("mechanism")
    if not mechanisms:
        return
    plain = OmegaConf.to_container(mechanisms, resolve=False)
    assert isinstance(plain, dict)
    cfg.mechanism = {name: plain[name] for name in sorted(plain, key=str)}
    from bouton.mechanisms.registry import get  # imports torch

    for name, node in cfg.mechanism.items():
        path = f"mechanism.{name}"
        params = get(str(name)).Params
        values = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else node
        if values is not None and not isinstance(values, Mapping):
            raise ConfigError(f"{path} = {values!r} is not valid: it holds the parameters {', '.join(params.specs())}")
        params.from_config({str(key): value for key, value in (values or {}).items()}, path)


@contextmanager
def _own_hydra() -> Iterator[None]:
    """A free ``GlobalHydra``; an application's own is put back afterwards."""
    saved = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = saved
