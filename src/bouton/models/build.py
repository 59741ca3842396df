"""``bouton.build(cfg)``: a body with its mechanisms plugged in and initialised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from bouton.errors import ConfigError, suggest
from bouton.mechanisms import registry
from bouton.mechanisms.base import Mechanism
from bouton.models.body import Body
from bouton.models.gru import GRU
from bouton.models.initialize import initialize
from bouton.models.spiking import Spiking
from bouton.models.substrate import Substrate
from bouton.models.transformer import Transformer
from bouton.ops import backends

# Name in the configuration -> class, with a `Config` of its own.
BODIES: dict[str, Any] = {"gru": GRU, "spiking": Spiking, "substrate": Substrate, "transformer": Transformer}
_GPT2_VOCABULARY = 50257
_BYTES_VOCABULARY = 257


def build(cfg: DictConfig | Mapping[str, Any], *, device: str = "cpu") -> Body:
    """Build the body that ``cfg.model`` describes, plug the mechanisms of ``cfg.mechanism`` in, and initialise it.

    Args:
        cfg: a composed configuration (``bouton.compose(...)``), with at least ``model``.
        device: where to build; ``meta`` builds shapes only, without memory or initialisation.

    Raises:
        ConfigError: an unknown or invalid field.
        SocketError: the mechanisms do not go together on this body.
    """
    plain = OmegaConf.to_container(cfg, resolve=True) if isinstance(cfg, DictConfig) else dict(cfg)
    assert isinstance(plain, dict)
    import torch

    model = dict(plain["model"])
    name = model.pop("body", "transformer")
    if name not in BODIES:
        raise ConfigError(f"model.body = {name!r} is unknown: {suggest(str(name), BODIES)}")
    if model.get("vocab_size") is None:
        model["vocab_size"] = vocab_size(plain.get("data") or {})
    if model.get("num_labels") is None and (types := (plain.get("data") or {}).get("types")) is not None:
        model["num_labels"] = 2 * len(types) + 1  # begins, goes on, for each; and outside
    kernels = dict(plain.get("kernels") or {})
    registry.mechanisms()  # mechanisms of other packages bring their ops, which `kernels.<op>` may name
    backends.register_all()
    backends.configure(**{key: str(value) for key, value in kernels.items() if value is not None})
    with torch.device(device):
        body: Body = BODIES[name](BODIES[name].Config.from_config(model, "model"))
        body.plug(build_mechanisms(plain.get("mechanism") or {}))
    if device != "meta":
        initialize(body, int(plain.get("seed") or 0))
    return body


def build_mechanisms(configs: Mapping[str, Mapping[str, Any] | None]) -> list[Mechanism]:
    """One mechanism per entry of ``cfg.mechanism`` (name -> parameters)."""
    built = []
    for name in sorted(configs):
        cls = registry.get(str(name))
        built.append(cls(cls.Params.from_config(configs[name] or {}, f"mechanism.{name}")))
    return built


def vocab_size(data: Mapping[str, Any]) -> int:
    """Size of the vocabulary that the configured data will have, as far as the configuration alone can tell.

    Training knows the real tokenizer and sets ``model.vocab_size`` itself; this serves ``bouton.build`` on its own.

    Raises:
        ConfigError: it cannot be told.
    """
    tokenizer = data.get("tokenizer") or {}
    size = data.get("vocab_size") or tokenizer.get("vocab_size")
    if tokenizer.get("kind") == "bytes":
        return _BYTES_VOCABULARY
    if tokenizer.get("kind") == "gpt2":
        return _GPT2_VOCABULARY
    if size is None:
        raise ConfigError("model.vocab_size = null cannot be told from the data: set it to the tokenizer's size")
    return int(size)
