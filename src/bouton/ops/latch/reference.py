"""The definition of the latch, token by token and differentiated by autograd (use float64)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

REST = (0.0, 1.0)  # CaMKII inactive, PP1 fully active


class Rates(NamedTuple):
    """The constants of the latch; rates per token, calcium in units of typical activity."""

    a_ca: float = 0.6  # activation of CaMKII by calcium
    b_pp1: float = 1.0  # its dephosphorylation by PP1
    gamma: float = 0.45  # its autophosphorylation at saturation
    n: float = 6.0  # cooperativity of that
    k: float = 0.6  # CaMKII at which that is half
    a_pp1: float = 0.5  # activation of PP1 by low calcium
    b_cam: float = 0.3  # its inactivation by CaMKII
    p_basal: float = 0.3  # below which PP1 never falls
    gain: float = 12.0  # steepness of both calcium thresholds
    theta_ltp: float = 1.5  # calcium above which the latch is driven on
    theta_ltd: float = 0.5  # calcium below which it is erased


def step(calcium: Tensor, rates: Rates, m: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """One token: calcium, m and p (B, H) -> m and p after it."""
    drive = torch.sigmoid(rates.gain * (calcium - rates.theta_ltp))
    erase = torch.sigmoid(rates.gain * (rates.theta_ltd - calcium))
    power = m**rates.n
    kept = rates.gamma * power / (rates.k**rates.n + power)
    rise = m + rates.a_ca * drive * (1 - m) - rates.b_pp1 * p * m + kept
    fall = p + rates.a_pp1 * erase * (1 - p) - rates.b_cam * m * p
    return clip(rise, 0.0), clip(fall, rates.p_basal)


def clip(x: Tensor, low: float) -> Tensor:
    """``x`` within [low, 1]; at and beyond a bound its gradient is 0 (torch.clamp passes it on at the bound)."""
    inside = (x > low) & (x < 1.0)
    return torch.where(inside, x, x.detach().clamp(low, 1.0))


def latch_reference(
    calcium: Tensor, rates: Rates, m: Tensor, p: Tensor, starts: Tensor | None
) -> tuple[Tensor, Tensor]:
    """m and p after every token, (B, T, H); calcium (B, T, H), m and p (B, H) before the first, starts (B, T)."""
    active, inactive = [], []
    for t in range(calcium.shape[1]):
        if starts is not None:
            m, p = (x.masked_fill(starts[:, t, None], rest) for x, rest in zip((m, p), REST, strict=True))
        m, p = step(calcium[:, t], rates, m, p)
        active.append(m)
        inactive.append(p)
    return torch.stack(active, dim=1), torch.stack(inactive, dim=1)
