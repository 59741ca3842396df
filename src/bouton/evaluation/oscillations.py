"""What the oscillating units of a model have learned, and whether anything in the model oscillates.

Two different things go by the word. A unit's *frequency* omega says how fast sin(omega x + phi) turns with the unit's
input x; it has no unit of time, and a histogram of it is a histogram of a parameter. Whether *activity* oscillates is a
question about the hidden units along the positions of a text: their power spectrum, beside that of the same activity in
shuffled order, which has the same values and no rhythm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bouton.errors import EvaluationError
from bouton.mechanisms.oscillate import Oscillation, dead_units
from bouton.models.sockets import ExclusiveSocket

if TYPE_CHECKING:
    from bouton.models.body import Body

# |omega|, radians per unit of the input, by the names that the published analysis borrows from electroencephalography.
BANDS: Mapping[str, tuple[float, float]] = {
    "delta": (0.0, 0.4),
    "theta": (0.4, 0.8),
    "alpha": (0.8, 1.2),
    "beta": (1.2, 1.8),
    "gamma": (1.8, math.inf),
}


# -- parameters --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Units:
    """The oscillating units of one activation socket, on the CPU.

    Attributes:
        layer: index of the block.
        omega, phi: (width,) radians per unit of the input, and radians.
        dead: (width,) bool, whether the output is constant.
    """

    layer: int
    omega: Tensor
    phi: Tensor
    dead: Tensor


def units(body: Body) -> dict[str, Units]:
    """The oscillating units of a model by the name of their socket, in the order of the blocks.

    Raises:
        EvaluationError: there are none.
    """
    found = {}
    for name, module in body.named_modules():
        if isinstance(module, Oscillation):
            omega, phi = module.omega.detach().float().cpu(), module.phi.detach().float().cpu()
            found[name] = Units(module.layer, omega.clone(), phi.clone(), dead_units(omega, phi))
    if not found:
        raise EvaluationError("this model has no oscillating units: train one with mechanism=oscillate")
    return dict(sorted(found.items(), key=lambda item: item[1].layer))


def canonical(omega: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
    """The same waves up to their sign with omega >= 0 and phi in [-pi/2, pi/2).

    (omega, phi) -> (-omega, -phi) and phi -> phi + pi turn sin(omega x + phi) into its negative, which the next map
    undoes with a sign: neither the sign of omega nor a range of phi beyond half a turn means anything.
    """
    phi = torch.where(omega < 0, -phi, phi)
    return omega.abs(), torch.remainder(phi + math.pi / 2, math.pi) - math.pi / 2


def band_shares(omega: Tensor) -> dict[str, float]:
    """Share of units in each of :data:`BANDS`; omega (width,)."""
    size = omega.abs()
    return {name: ((size >= low) & (size < high)).float().mean().item() for name, (low, high) in BANDS.items()}


def normal_band_shares(mean: float, std: float) -> dict[str, float]:
    """The shares that frequencies drawn from N(mean, std^2) have: what is there before anything is learned."""

    def below(x: float) -> float:  # P(omega < x)
        return float(x > mean) if std == 0 else 0.5 * (1 + math.erf((x - mean) / (std * math.sqrt(2))))

    shares = {}
    for name, (low, high) in BANDS.items():
        shares[name] = below(high) - below(low) + below(-low) - below(-high)
    return shares


# -- activity ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def hidden_activity(body: Body, tokens: Tensor, starts: Tensor | None = None) -> dict[str, Tensor]:
    """What the hidden units of every activation socket put out while texts are read.

    Args:
        tokens: (B, T) int64.
        starts: (B, T) bool, True where a document begins.

    Returns:
        Name of the socket -> (B, T, width) float32 on the CPU, in the order of the blocks.

    Raises:
        EvaluationError: the body has no activation socket.
    """
    sockets = {
        name: module
        for name, module in body.named_modules()
        if isinstance(module, ExclusiveSocket) and module.kind == "activation"
    }
    if not sockets:
        raise EvaluationError("this model has no activation whose output could be seen")
    seen: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for name, socket in sockets.items():

            def keep(_: object, __: object, out: Tensor, name: str = name) -> None:
                seen[name] = out.detach().float().cpu()

            stack.callback(socket.register_forward_hook(keep).remove)
        body(tokens, starts=starts)
    return {name: seen[name] for name in sorted(seen, key=lambda name: sockets[name].layer)}


@dataclass(frozen=True)
class Spectrum:
    """Power over frequency. White noise has power T / (T - 1) everywhere, whatever its size.

    Attributes:
        frequency: (F,) cycles per token, 1/T to 1/2.
        power: (F,) mean over rows and units.
        error: (F,) standard error over rows; the units of a row are not independent of each other.
    """

    frequency: Tensor
    power: Tensor
    error: Tensor


def spectrum(activity: Tensor) -> Spectrum:
    """The power spectrum of units along the positions of a text (periodogram).

    Each unit is brought to mean 0 and variance 1 in each row, so that all count alike; one that does not change in a
    row is left out there.

    Args:
        activity: (B, T, width), T >= 4.

    Raises:
        EvaluationError: a wrong shape, or nothing changes.
    """
    rows = _row_spectra(activity)
    error = rows.std(dim=0) / math.sqrt(len(rows)) if len(rows) > 1 else torch.full_like(rows[0], torch.nan)
    frequency = torch.fft.rfftfreq(activity.shape[1])[1:].to(rows.dtype)
    return Spectrum(frequency, rows.mean(dim=0), error)


def shuffled(activity: Tensor, generator: torch.Generator) -> Tensor:
    """The same (B, T, width) with the positions of every row in another order, the same for all its units."""
    order = torch.rand(activity.shape[:2], generator=generator).argsort(dim=1)
    return activity.gather(1, order[..., None].expand_as(activity))


def shuffled_band(
    activity: Tensor, generator: torch.Generator, shuffles: int = 100, confidence: float = 0.95
) -> tuple[float, float]:
    """Between which powers a whole spectrum stays if the order of the positions means nothing.

    From the least and the greatest power over all frequencies of each shuffle, so that many frequencies do not make one
    of them stand out by chance.

    Args:
        activity: (B, T, width).
        shuffles: how often the positions are shuffled, at least 20.
        confidence: share of the shuffles that stay inside.
    """
    if shuffles < 20:
        raise EvaluationError(f"shuffles = {shuffles}: at least 20 are needed to say how far chance goes")
    spectra = torch.stack([_row_spectra(shuffled(activity, generator)).mean(dim=0) for _ in range(shuffles)])
    outside = (1 - confidence) / 2
    return (
        spectra.min(dim=1).values.quantile(outside).item(),
        spectra.max(dim=1).values.quantile(1 - outside).item(),
    )


def slow_share(activity: Tensor, period: float = 8.0) -> tuple[float, float]:
    """Share of the power in rhythms of ``period`` tokens and more: mean over rows, and its standard error.

    Args:
        activity: (B, T, width).
    """
    rows = _row_spectra(activity)
    slow = torch.fft.rfftfreq(activity.shape[1])[1:] <= 1 / period
    shares = rows[:, slow].sum(dim=1) / rows.sum(dim=1)
    return shares.mean().item(), (shares.std() / math.sqrt(len(shares))).item() if len(shares) > 1 else math.nan


def _row_spectra(activity: Tensor) -> Tensor:
    """(B, F) in float64, mean over the units of each row."""
    if activity.dim() != 3 or activity.shape[1] < 4:
        raise EvaluationError(f"activity {tuple(activity.shape)} must be (rows, positions, units), with 4 positions")
    x = activity.double() - activity.double().mean(dim=1, keepdim=True)
    size = x.square().mean(dim=1, keepdim=True).sqrt()
    changes = size > 1e-6 * activity.double().abs().amax(dim=1, keepdim=True).clamp_min(1e-30)
    x = torch.where(changes, x / size.clamp_min(1e-300), 0.0)
    counted = changes.sum(dim=(1, 2))
    if not counted.all():
        raise EvaluationError("in a row no unit changes its activity: there is no spectrum")
    power = torch.fft.rfft(x, dim=1)[:, 1:].abs().square() / activity.shape[1]
    rows: Tensor = power.sum(dim=2) / counted[:, None]
    return rows
