"""ca_init: the weights of the blocks start as the space-time pattern of a cellular automaton.

    a_{t+1, i} = rule(a_{t, i-1}, a_{t, i}, a_{t, i+1})        cells on a ring, a_0 random
    C_{t, i}   = std(W) (a_{t, i} - mean(a)) / std(a)          one row of the matrix per time step
    W         <- sqrt(1 - strength) W + sqrt(strength) C       then scaled to the std that W had

W is the matrix as its module drew it, so the spread of every matrix is that of the plain initialisation, whatever that
is, and only the structure differs; biases, norms, and what a mechanism starts as orthonormal or constant stay. Rule 30
is chaotic, and its matrices have the spectral norm of random ones. Rule 116 soon moves its row by one cell per step and
changes it no more: from there on its matrices are circular convolutions of the input, with a larger spectral norm.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from bouton.mechanisms.base import Mechanism
from bouton.mechanisms.parameters import Params, choice, integer, real
from bouton.mechanisms.pictures import Picture
from bouton.mechanisms.registry import register

if TYPE_CHECKING:
    from bouton.mechanisms.vitals import Vitals
    from bouton.models.body import Body
    from bouton.models.initialize import Draw

RULES = {"rule30": 30, "rule116": 116}
BLOCKS = "layers."  # the qualified names of what is filled begin so: no embedding, no output head
POWER_STEPS = 30
ATTEMPTS = 50
LARGEST_PICTURE = 96


@dataclass(frozen=True)
class CAInitParams(Params):
    """Parameters of :class:`CAInit`."""

    rule: str = choice("rule30", tuple(RULES), "the elementary cellular automaton, by Wolfram's number")
    strength: float = real(1.0, "share of the variance that the automaton has; 0 leaves it out", low=0, high=1)
    burn_in: int = integer(0, "rows computed and dropped before the first one that is used", unit="rows", low=0)


def evolve(first: Tensor, rows: int, rule: int) -> Tensor:
    """The space-time pattern of an elementary cellular automaton on a ring (Wolfram 1983).

    Args:
        first: (..., width) int64 of 0 and 1, the row at time 0.
        rows: number of time steps, the first row included.
        rule: Wolfram's number, whose bit 4 l + 2 c + r is the next state of a cell with neighbours l and r.

    Returns:
        (..., rows, width) int64.
    """
    table = torch.tensor([rule >> neighbourhood & 1 for neighbourhood in range(8)])
    pattern = [first]
    for _ in range(rows - 1):
        row = pattern[-1]
        pattern.append(table[4 * row.roll(1, -1) + 2 * row + row.roll(-1, -1)])
    return torch.stack(pattern, dim=-2)


def spectral_norm(matrix: Tensor, generator: torch.Generator) -> Tensor:
    """The largest singular value of each (..., m, n) matrix by power iteration: from below, to about a percent."""
    x = torch.randn(*matrix.shape[:-2], matrix.shape[-1], 1, generator=generator, dtype=matrix.dtype)
    for _ in range(POWER_STEPS):
        y = matrix @ (x / x.norm(dim=-2, keepdim=True).clamp_min(1e-30))
        x = matrix.mT @ y
    norm: Tensor = y.norm(dim=(-2, -1))
    return norm


class AutomatonWeights(nn.Module):
    """The part in the ``initializer`` socket. Its buffers sum up, over the matrices it filled, how they compare.

    Attributes:
        matrices: how many it filled.
        std, spectrum: sums of the ratios of their standard deviation and spectral norm to those of the default.
    """

    matrices: Tensor
    std: Tensor
    spectrum: Tensor

    def __init__(self, hp: CAInitParams) -> None:
        super().__init__()
        self.hp = hp
        for name in ("matrices", "std", "spectrum"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float32))

    def initialize_parameters(self, draw: Draw) -> None:
        for name in ("matrices", "std", "spectrum"):
            draw.constant(self.get_buffer(name), 0.0)

    @torch.no_grad()
    def forward(self, name: str, tensor: Tensor, draw: Draw) -> None:
        """Fill ``tensor`` (..., rows, width) if it is a matrix, or several, of a block; else leave it."""
        if not (name.startswith(BLOCKS) and isinstance(tensor, nn.Parameter) and tensor.dim() >= 2):
            return
        if tensor.numel() == 0 or tensor.shape[-2] * tensor.shape[-1] == 1:
            return  # a single number has no variance to match
        # In float64 on the CPU: every device and dtype gets the same numbers.
        default = tensor.detach().to("cpu", torch.float64, copy=True)
        spread = default.std(dim=(-2, -1), correction=0, keepdim=True)
        if not spread.all():
            return  # it starts at zero
        generator = draw.generator(name + ".automaton")
        if (pattern := self.pattern(tuple(default.shape), generator)) is None:
            return
        share = self.hp.strength
        mixed = (1 - share) ** 0.5 * default + share**0.5 * spread * pattern
        filled = mixed * (spread / mixed.std(dim=(-2, -1), correction=0, keepdim=True))
        tensor.copy_(filled)
        ratio = filled.std(dim=(-2, -1), correction=0, keepdim=True) / spread
        norms = spectral_norm(filled, generator) / spectral_norm(default, generator)
        self.matrices += norms.numel()
        self.std += ratio.sum().to(self.std)
        self.spectrum += norms.sum().to(self.spectrum)

    def pattern(self, shape: Sequence[int], generator: torch.Generator) -> Tensor | None:
        """(..., rows, width) float64 with mean 0 and variance 1 in every matrix, from a random first row each.

        None where no automaton lives: on one or two cells it may die out before the first row that is used.
        """
        *batch, rows, width = shape
        for _ in range(ATTEMPTS):
            first = torch.randint(2, (*batch, width), generator=generator)
            grid = evolve(first, self.hp.burn_in + rows, RULES[self.hp.rule])[..., self.hp.burn_in :, :].double()
            spread = grid.std(dim=(-2, -1), correction=0, keepdim=True)
            if spread.all():
                return (grid - grid.mean(dim=(-2, -1), keepdim=True)) / spread
        return None


@register
class CAInit(Mechanism):
    """Cellular-automaton initialisation of the matrices of all blocks."""

    name = "ca_init"
    summary = "weights of the blocks start as the pattern of a cellular automaton, with the variance of the default"
    source = "Wolfram, Rev. Mod. Phys. 55 (1983) 601 (elementary cellular automata)"
    sockets = ("initializer",)
    Params = CAInitParams
    state = "none: it acts once, before training"
    neutral: ClassVar[Mapping[str, Any] | None] = {"strength": 0.0}
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {"rule116": {"rule": "rule116", "strength": 0.5}}
    vital_names: ClassVar[Mapping[str, str]] = {
        "std_ratio": "standard deviation of a matrix at the start / that of its default, mean over matrices",
        "spectral_ratio": "the same of the spectral norm",
        "spectral_excess": "spectral norm of the weights now / that of a Gaussian matrix of equal spread",
    }

    def plug(self, body: Body) -> None:
        # In tuples, so that the part and the body are no children of the mechanism.
        self._body = (body,)
        self._parts = (AutomatonWeights(self.hp),) if self.hp.strength > 0 else ()
        for part in self._parts:
            for socket in body.sockets("initializer"):
                socket.plug(self, part)

    def _matrices(self) -> Iterator[tuple[str, Tensor]]:
        """The parameters of the blocks that are matrices, or several."""
        for name, parameter in self._body[0].named_parameters():
            if name.startswith(BLOCKS) and parameter.dim() >= 2:
                yield name.removeprefix(BLOCKS), parameter.detach()

    @torch.no_grad()
    def report(self, vitals: Vitals) -> None:
        ratios = {"std_ratio": 1.0, "spectral_ratio": 1.0}
        for part in self._parts:
            number = part.matrices.clamp_min(1)
            ratios = {"std_ratio": float(part.std / number), "spectral_ratio": float(part.spectrum / number)}
        for name, ratio in ratios.items():
            vitals.add(self.name, name, ratio, -1)
        for name, matrix in self._matrices():
            weights = matrix.float().cpu()
            rows, width = weights.shape[-2:]
            # The edge of the spectrum of a large random matrix.
            edge = weights.std(dim=(-2, -1), correction=0) * (rows**0.5 + width**0.5)
            norm = spectral_norm(weights, torch.Generator().manual_seed(0))
            vitals.add(self.name, "spectral_excess", (norm / edge.clamp_min(1e-30)).mean(), int(name.split(".")[0]))

    def pictures(self, states: Sequence[Mapping[str, Any]]) -> dict[str, Picture]:
        """The upper left corner of the first and the last matrix of the first block, as they are now."""
        shown = [(name, weight) for name, weight in self._matrices() if name[:2] == "0." and weight.dim() == 2]
        return {
            f"weights_{name.removeprefix('0.')}": Picture(
                weight[:LARGEST_PICTURE, :LARGEST_PICTURE], "output", "input", unit="weight"
            )
            for name, weight in (shown[0], shown[-1])
        }
