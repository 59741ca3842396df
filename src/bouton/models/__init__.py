"""Bodies: ordinary models that expose sockets for mechanisms."""

from __future__ import annotations

from bouton.models.body import Body
from bouton.models.build import build
from bouton.models.context import Context
from bouton.models.initialize import Draw, initialize
from bouton.models.transformer import Transformer, TransformerConfig

__all__ = ["Body", "Context", "Draw", "Transformer", "TransformerConfig", "build", "initialize"]
