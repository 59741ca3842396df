"""Text from a model: sampling, batched decoding with explicit state, streaming."""

from bouton.generation.decode import Completion, Piece, generate, stream
from bouton.generation.sampling import Sampling

__all__ = ["Completion", "Piece", "Sampling", "generate", "stream"]
