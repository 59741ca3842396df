"""Hugging Face: a run as a folder that ``transformers`` loads, generates with and evaluates.

    bouton.hub.save_pretrained("runs/...", "exported")          # config.json, model.safetensors, tokenizer.json
    model = bouton.hub.from_pretrained("exported")              # a BoutonForCausalLM
    model.generate(**tokenizer("Once upon", return_tensors="pt"), max_new_tokens=50)

After ``import bouton.hub`` the ``Auto`` classes of transformers know the folder as well; where nobody imports it, they
do with ``trust_remote_code=True``. Needs the extra ``hub`` (transformers).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from bouton.hub.optional import require_transformers

if TYPE_CHECKING:
    from bouton.hub.export import from_pretrained as from_pretrained
    from bouton.hub.export import save_pretrained as save_pretrained
    from bouton.hub.modeling import BoutonConfig as BoutonConfig
    from bouton.hub.modeling import BoutonForCausalLM as BoutonForCausalLM
    from bouton.hub.tokenizer import fast_tokenizer as fast_tokenizer

_PUBLIC = {
    "BoutonConfig": "modeling",
    "BoutonForCausalLM": "modeling",
    "fast_tokenizer": "tokenizer",
    "from_pretrained": "export",
    "save_pretrained": "export",
}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'bouton.hub' has no attribute {name!r}")
    require_transformers()
    return getattr(importlib.import_module(f"bouton.hub.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
