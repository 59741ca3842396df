"""The neurons in torch: the definition with the tokens taken apart once (indexing them one by one costs O(T^2))."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bouton.ops.lif.reference import lif_step

if TYPE_CHECKING:
    from bouton.ops.lif import LIFOptions


def lif_torch(
    x: Tensor,
    beta: Tensor,
    theta: Tensor,
    gain: Tensor | None,
    w_rec: Tensor | None,
    u0: Tensor,
    s0: Tensor,
    starts: Tensor | None,
    options: LIFOptions,
) -> tuple[Tensor, Tensor]:
    """See :func:`bouton.ops.lif.reference.lif_reference`; all of one dtype, T >= 1."""
    keep = None if starts is None else (~starts).to(x.dtype).unsqueeze(2).unbind(1)
    u, s, spikes = u0, s0, []
    for t, current in enumerate(x.unbind(1)):
        if keep is not None:
            u, s = u * keep[t], s * keep[t]
        u, s = lif_step(current, u, s, beta, theta, gain, w_rec, **vars(options))
        spikes.append(s)
    return torch.stack(spikes, dim=1), u
