"""``init_from=<run folder>``: the model and the mechanisms of that run, and its tokenizer for the data.

The words ``model=<run folder>`` and ``mechanism=<run folder>`` compose what the run's ``config.yaml`` holds, so that
experiments and further words override it field by field, as they do any other option.
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from bouton.errors import ConfigError

INHERITED = ("model", "mechanism")
_KEY = "init_from"


def inherit(words: list[str]) -> list[str]:
    """The overrides ``words`` with the options that ``init_from=...`` among them brings, unless they choose others.

    Raises:
        ConfigError: several runs are named at once, or what is named is no run.
    """
    given = [word for word in words if word.lstrip("+").partition("=")[0] == _KEY]
    if not given:
        return words
    from hydra.core.override_parser.overrides_parser import OverridesParser

    override = OverridesParser.create().parse_override(given[-1])
    if override.is_sweep_override():
        raise ConfigError(f"{given[-1]}: a grid cannot go over runs to start from; start one after another")
    value = override.value()
    if value is None:
        return words
    folder = run_folder(str(value))
    chosen = {word.lstrip("+").partition("=")[0] for word in words}
    quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    return [*words, *(f"{group}='{quoted}'" for group in INHERITED if group not in chosen)]


def run_folder(value: str) -> Path:
    """The run folder that ``init_from`` names, itself or by one of its checkpoint files.

    Raises:
        ConfigError: it is no run folder.
    """
    path = Path(value).expanduser()
    folder = path.parent.parent if path.is_file() else path
    if not (folder / "config.yaml").is_file():
        there = "has no config.yaml" if folder.is_dir() else "does not exist"
        raise ConfigError(f"{_KEY} = {value} is not valid: a run folder or a checkpoint file in one ({folder} {there})")
    return folder


def use_tokenizer(cfg: DictConfig) -> None:
    """With ``init_from``, let data of text be read with the tokenizer of that run.

    Raises:
        ConfigError: it is no run folder, or has no tokenizer.
    """
    if cfg.get(_KEY) is None:
        return
    tokenizer = run_folder(str(cfg[_KEY])) / "tokenizer"
    if not tokenizer.is_dir():
        raise ConfigError(f"{_KEY} = {cfg[_KEY]} is not valid: {tokenizer} does not exist")
    if "tokenizer" in cfg.data:
        OmegaConf.update(cfg, "data.tokenizer", {"kind": "saved", "path": str(tokenizer)}, merge=False)
