"""Lateral inhibition along a sequence: x_t <- x_t - strength * mean(x_{t-w}, ..., x_{t-1}).

Attention scores are linear in the keys, so applied to keys this inhibits each score q . k_j by the mean score of the
neighbours before it: a high-pass filter that sharpens a key against its surroundings (Hartline and Ratliff 1957), at
the cost of O(T) and with any attention core.
"""

from __future__ import annotations

# The submodule `torch` takes that name in this package, so only names are imported from the library.
from torch import Tensor
from torch import bool as torch_bool

from bouton.errors import KernelError
from bouton.ops.backends import register_backend, select
from bouton.ops.lateral_inhibition.reference import lateral_inhibition_reference
from bouton.ops.lateral_inhibition.torch import lateral_inhibition_torch

__all__ = ["lateral_inhibition", "lateral_inhibition_reference"]

OP = "lateral_inhibition"
register_backend(OP, "torch")


def lateral_inhibition(
    x: Tensor,
    strength: float,
    window: int,
    *,
    starts: Tensor | None = None,
    state: dict[str, Tensor] | None = None,
    backend: str = "auto",
) -> tuple[Tensor, dict[str, Tensor]]:
    """Subtract from each vector ``strength`` times the mean of its untransformed predecessors in the same document.

    Args:
        x: (B, H, T, D), e.g. keys.
        strength: factor of the mean; 0 leaves ``x`` as it is.
        window: number of predecessors, at least 1; of fewer existing ones the mean is over those, of none it is 0.
        starts: (B, T) bool, True at the first token of a document; None: no document begins here.
        state: what an earlier call returned; None: a fresh sequence.
        backend: ``auto`` or the name of a backend.

    Returns:
        (B, H, T, D) in the dtype of ``x``, and the state after the last token: ``keys`` (B, H, window, D), the last
        untransformed vectors (0 where there are none), and ``valid`` (B, window) bool, which of them belong to the
        document of the last token.

    Raises:
        KernelError: a shape that does not fit, a window below 1, or a backend that cannot run.
    """
    if x.dim() != 4:
        raise KernelError(f"lateral_inhibition: x {tuple(x.shape)} must be (B, H, T, D)")
    if window < 1:
        raise KernelError(f"lateral_inhibition: window = {window} must be at least 1")
    batch, heads, tokens, dim = x.shape
    if starts is not None and starts.shape != (batch, tokens):
        raise KernelError(f"lateral_inhibition: starts {tuple(starts.shape)} must be (B, T) = {(batch, tokens)}")
    if state is None:
        past = x.new_zeros(batch, heads, window, dim)
        valid = x.new_zeros(batch, window, dtype=torch_bool)
    else:
        past, valid = state["keys"], state["valid"]
        if past.shape != (batch, heads, window, dim):
            raise KernelError(
                f"lateral_inhibition: state['keys'] {tuple(past.shape)} must be {(batch, heads, window, dim)}"
            )
    select(OP, x.device, backend)
    y, keys, valid = lateral_inhibition_torch(x, strength, window, starts, past.to(x.dtype), valid)
    return y, {"keys": keys, "valid": valid}
