"""A body as a transformers model: the same computation, with the explicit state where transformers keeps a cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from bouton.generation.decode import take
from bouton.models.build import build
from bouton.models.initialize import Draw
from bouton.models.sockets import State


class BoutonConfig(PretrainedConfig):
    """What ``bouton.build`` needs.

    Args:
        model: ``cfg.model`` with its vocabulary size.
        mechanism: ``cfg.mechanism``, name -> parameters.
        seed: of the initial weights, for tensors that a file lacks.
        kernels: backend of the ops.
    """

    model_type = "bouton"

    def __init__(
        self,
        model: dict[str, Any] | None = None,
        mechanism: dict[str, Any] | None = None,
        seed: int = 0,
        kernels: str = "auto",
        **others: Any,
    ) -> None:
        self.model = dict(model or {})
        self.mechanism = dict(mechanism or {})
        self.seed = seed
        self.kernels = kernels
        # The names by which other libraries look for sizes.
        self.vocab_size = self.model.get("vocab_size")
        self.hidden_size = self.model.get("hidden_size")
        self.num_hidden_layers = self.model.get("num_layers")
        self.num_attention_heads = self.model.get("num_heads")
        self.max_position_embeddings = self.model.get("max_seq_len")
        # The body ties its own tensors: there is no second one that transformers could tie.
        super().__init__(**{**others, "tie_word_embeddings": False})


@dataclass
class BoutonOutput(ModelOutput):
    """``loss`` (if labels were given), ``logits`` (B, T, V), ``state`` after the last token (if ``use_cache``)."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    state: State | None = None


class BoutonForCausalLM(PreTrainedModel, GenerationMixin):
    """A body with its mechanisms. ``generate()`` hands the body's state on from token to token."""

    config_class = BoutonConfig
    base_model_prefix = "body"
    _no_split_modules = ["Block"]  # noqa: RUF012 (transformers reads it from the class)

    def __init__(self, config: BoutonConfig) -> None:
        super().__init__(config)
        device = str(torch.get_default_device())  # from_pretrained builds on "meta", without memory
        described = {"model": config.model, "mechanism": config.mechanism, "seed": config.seed}
        self.body = build({**described, "kernels": {"backend": config.kernels}}, device=device)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        state: State | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        **unsupported: Any,
    ) -> BoutonOutput | tuple[Any, ...]:
        """input_ids (B, T) -> logits (B, T, V).

        Args:
            attention_mask: (B, T) or (B, earlier tokens + T), 0 where a row is padded, on the left or the right.
            state: of an earlier call; ``input_ids`` are then the tokens that follow it.
            labels: (B, T), -100 where ignored; shifted here, as everywhere in transformers.

        Raises:
            ValueError: a mask with holes, or an argument that this model has nothing for.
        """
        if extra := sorted(name for name, value in unsupported.items() if value is not None and value is not False):
            raise ValueError(f"BoutonForCausalLM does not take {extra[0]}")
        logits, after = self.body(input_ids, state, starts=_starts(attention_mask, input_ids))
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
            extra_loss = self.body.auxiliary_loss()
            loss = loss if extra_loss is None else loss + extra_loss
        keep = self.config.use_cache if use_cache is None and hasattr(self.config, "use_cache") else use_cache
        output = BoutonOutput(loss, logits, after if keep is None or keep else None)
        return output.to_tuple() if return_dict is False else output

    # -- generation ----------------------------------------------------------------------------------------------------

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        state: State | None = None,
        attention_mask: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """With a state the tokens after it, else all of them."""
        if state is not None:
            input_ids = input_ids[:, -(next_sequence_length or 1) :]
        return {"input_ids": input_ids, "attention_mask": attention_mask, "state": state, "use_cache": use_cache}

    def _update_model_kwargs_for_generation(
        self, outputs: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        updated: dict[str, Any] = super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)
        if outputs.state is not None:
            updated["state"] = outputs.state
        return updated

    @staticmethod
    def _reorder_cache(state: State, beam_idx: Tensor) -> State:
        """The state of the beams that go on."""
        return dict(take(state, beam_idx.tolist()))

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # the state is no key/value cache of transformers' making

    # -- what transformers asks ----------------------------------------------------------------------------------------

    def get_input_embeddings(self) -> nn.Module:
        return self.body.embedding  # type: ignore[return-value]

    def _init_weights(self, module: nn.Module) -> None:
        """Called where a file lacked tensors of ``module``."""
        method = getattr(module, "initialize_parameters", None)
        if method is not None:
            name = next(name for name, found in self.body.named_modules() if found is module)
            method(Draw(self.config.seed, name))


def _starts(mask: Tensor | None, tokens: Tensor) -> Tensor | None:
    """(B, T) where a row begins behind padding on its left, so that nothing of the padding reaches it."""
    if mask is None or bool(mask.all()):
        return None
    t, total = tokens.shape[1], mask.shape[1]
    filled = mask != 0
    # 0 0 1 1 1 0: one change from 0 to 1 at most
    begins = torch.cat((filled[:, :1], filled[:, 1:] & ~filled[:, :-1]), 1)
    if total < t or bool((begins.sum(1) > 1).any()):
        raise ValueError("attention_mask is not valid: it may be 0 before and after a row's tokens, not between them")
    starts = begins[:, total - t :].clone()
    if total == t:
        starts[:, 0] = False  # a row begins fresh anyway
    return starts if bool(starts.any()) else None


AutoConfig.register("bouton", BoutonConfig)
AutoModelForCausalLM.register(BoutonConfig, BoutonForCausalLM)
