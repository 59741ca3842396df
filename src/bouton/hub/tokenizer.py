"""A run's tokenizer as ``tokenizer.json`` of the library ``tokenizers``, with transformers' settings beside it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Model
from tokenizers import decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from bouton.data.tokenizers import END_OF_TEXT, Tokenizer, byte_alphabet


def fast_tokenizer(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """The same map from text to ids. A text begins with the end-of-text token, as every document in training does.

    The characters ``<|endoftext|>`` within a text are text, as in training. Numbers (``mqar``) are taken as they are.
    """
    numbers = tokenizer.kind == "integers"
    model = _numbers(tokenizer) if numbers else _bytes() if tokenizer.kind == "bytes" else _bpe(tokenizer)
    eot = str(tokenizer.eot_id) if numbers else END_OF_TEXT
    if not numbers:
        model.post_processor = processors.TemplateProcessing(
            single=f"{eot} $A", pair=f"{eot} $A {eot} $B", special_tokens=[(eot, tokenizer.eot_id)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        bos_token=eot,
        eos_token=eot,
        pad_token=eot,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        split_special_tokens=not numbers,
    )


def _bytes() -> Any:
    """One token for each byte, without merges; the end of text follows them."""
    vocabulary = {char: string[0] for char, string in byte_alphabet().items()}
    model = Model(models.BPE(vocab=vocabulary, merges=[]))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.decoder = decoders.ByteLevel()
    model.add_special_tokens([END_OF_TEXT])
    return model


def _numbers(tokenizer: Tokenizer) -> Any:
    model = Model(models.WordLevel({str(i): i for i in range(tokenizer.vocab_size)}, unk_token="0"))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return model


def _bpe(tokenizer: Tokenizer) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder)
        return Model.from_file(str(Path(folder) / "tokenizer.json"))
