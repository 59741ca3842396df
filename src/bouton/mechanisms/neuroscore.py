"""neuroscore: what the experts of a mixture are worth, beside their energy, when it is decided who splits and merges.

    contribution_e    = mean over tokens of -g_e dL/dg_e        rise of the loss, to first order, if e were dropped
    efficiency_e      = contribution_e / A_e
    specialisation_e  = 1 - cos(mean input of e, mean input of all)
    resilience_e      = 1 / (var_e + 1)                         var: of contribution_e over steps, relative to the mean
    score_e           = weighted mean of their ranks among the living, in [0, 1]
    merit_e           = 1 + strength (2 score_e - 1)

Split and merge compare merit_e A_e with their thresholds instead of A_e, so a useful expert splits with less energy and
goes bankrupt later than a useless one; of several that are due, the best splits and the worst is merged. Ranks and not
values: no outlier sets the scale. All means are exponential, over ``tau`` optimizer steps, and organism state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from bouton.errors import ConfigError
from bouton.mechanisms.base import Mechanism
from bouton.mechanisms.economy import ExpertTrait
from bouton.mechanisms.parameters import Params, real
from bouton.mechanisms.registry import register

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from bouton.mechanisms.vitals import Vitals
    from bouton.models.body import Body
    from bouton.models.initialize import Draw
    from bouton.models.router import Choice

_ENERGY = 1e-3  # keeps the efficiency of an expert without energy finite


@dataclass(frozen=True)
class NeuroscoreParams(Params):
    """Parameters of :class:`Neuroscore`."""

    strength: float = real(0.5, "largest relative change of the energy that counts; 0 leaves it out", low=0, high=0.9)
    efficiency: float = real(1.0, "weight of the efficiency in the score", low=0)
    specialisation: float = real(1.0, "weight of the specialisation", low=0)
    resilience: float = real(1.0, "weight of the resilience", low=0)
    tau: float = real(100.0, "time constant of all means", unit="optimizer steps", low=1, scale="log")

    def check(self) -> None:
        if self.efficiency + self.specialisation + self.resilience == 0:
            raise ConfigError(
                "efficiency = 0, specialisation = 0 and resilience = 0 leave nothing to score: one must be > 0"
            )


def ranks(values: Tensor) -> Tensor:
    """(n,) -> the rank of each in [0, 1]: the share of the others that are less, equal ones counting half."""
    n = len(values)
    if n == 1:
        return torch.full_like(values, 0.5)
    less = (values[None] < values[:, None]).sum(1)
    equal = (values[None] == values[:, None]).sum(1) - 1
    return (less + 0.5 * equal) / (n - 1)


class ExpertMerit(ExpertTrait):
    """The part in one merit socket. The numbers are the mechanism's."""

    def __init__(self, owner: Neuroscore, block: int, layer: int) -> None:
        super().__init__()
        self._owner = (owner,)  # in a tuple: the mechanism is no child of its part
        self.block, self.layer = block, layer

    def forward(self) -> Tensor:
        return self._owner[0].merit[self.block]

    @torch.compiler.disable  # a hook on a tensor inside a compiled graph would not be called
    def see(self, x: Tensor, choice: Choice) -> None:
        """x (B, T, hidden): note the inputs of the experts and, when the gradient comes, what they contribute."""
        owner, block, slots = self._owner[0], self.block, self._owner[0].merit.shape[1]
        experts, tokens = choice.experts.flatten(), x.shape[0] * x.shape[1]
        places = x.detach().double().unsqueeze(2).expand(*choice.experts.shape, -1).flatten(0, 2)
        inputs = places.new_zeros(slots, x.shape[-1]).index_add_(0, experts, places)
        owner.observe(f"inputs{block:04d}", inputs, tokens)
        if not choice.gates.requires_grad:
            return
        gates = choice.gates.detach()

        def note(gradient: Tensor) -> None:
            share = -(gates * gradient).double().flatten()
            total = share.new_zeros(slots).index_add_(0, experts, share)
            # The loss is a mean over the tokens here; over micro-batches and ranks it is again one.
            owner.observe(f"contribution{block:04d}", total * tokens, tokens)

        choice.gates.register_hook(note)

    def inherit(self, parent: int, child: int, draw: Draw, optimizer: Optimizer | None) -> None:
        owner = self._owner[0]
        for state in (owner.contribution, owner.inputs):  # each sees about half of the tokens now
            state[self.block, parent] /= 2
        owner.variance[self.block, parent] /= 4
        for state in (owner.contribution, owner.variance, owner.inputs, owner.merit):
            state[self.block, child] = state[self.block, parent]

    def absorb(self, expert: int, into: int, share: float, optimizer: Optimizer | None) -> None:
        owner = self._owner[0]
        for state in (owner.contribution, owner.variance, owner.inputs):
            state[self.block, into] += state[self.block, expert]
            state[self.block, expert] = 0


@register
class Neuroscore(Mechanism):
    """Scores of the experts in every block.

    Attributes:
        contribution, variance, merit: (blocks, slots); inputs: (blocks, slots, hidden), sum of the inputs of an expert
            per token of the batch.
    """

    contribution: Tensor
    variance: Tensor
    merit: Tensor
    inputs: Tensor

    name = "neuroscore"
    summary = "contribution, specialisation and resilience of experts decide over splits and merges in moe"
    source = "Molchanov et al. 2019 (gradient times gate as importance)"
    sockets = ("merit",)
    refines = ("moe",)
    Params = NeuroscoreParams
    state = "none"
    neutral: ClassVar[Mapping[str, Any] | None] = {"strength": 0.0}
    vital_names: ClassVar[Mapping[str, str]] = {
        "contribution": "mean contribution of the living experts, in nats per token (over the micro-batches of a step)",
        "efficiency": "mean efficiency",
        "specialisation": "mean specialisation",
        "resilience": "mean resilience",
        "merit_std": "standard deviation of the merit over the living experts",
    }

    def __init__(self, params: NeuroscoreParams | None = None) -> None:
        super().__init__(params)
        self._sockets: list[Any] = []  # they belong to the body's tree

    def plug(self, body: Body) -> None:
        if self.hp.strength == 0:
            return
        self._sockets = body.sockets("merit")
        shape = (len(self._sockets), self._sockets[0].slots)
        for name in ("contribution", "variance"):
            self.organism_state(name, shape)
        self.organism_state("merit", shape, initial=1.0)
        self.organism_state("inputs", (*shape, self._sockets[0].hidden_size))
        for socket in self._sockets:
            socket.plug(self, ExpertMerit(self, socket.block, socket.layer))

    def measures(self, block: int, alive: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Efficiency, specialisation and resilience of the experts ``alive`` (indices) of a block."""
        contribution = self.contribution[block, alive]
        energy = self._sockets[block].moe.expert_energy[block, alive]
        inputs = self.inputs[block, alive]
        alike = torch.cosine_similarity(inputs, self.inputs[block].sum(0, keepdim=True), dim=-1, eps=1e-12)
        scale = contribution.mean().square().clamp_min(1e-24)
        return contribution / (energy + _ENERGY), 1 - alike, 1 / (self.variance[block, alive] / scale + 1)

    def update_organism(self, means: Mapping[str, Tensor]) -> None:
        rho, hp = math.exp(-1 / self.hp.tau), self.hp
        for block, socket in enumerate(self._sockets):
            if (inputs := means.get(f"inputs{block:04d}")) is not None:
                self.inputs[block] = rho * self.inputs[block] + (1 - rho) * inputs
            if (seen := means.get(f"contribution{block:04d}")) is not None:
                before = self.contribution[block].clone()
                self.contribution[block] = rho * before + (1 - rho) * seen
                spread = (seen - before) * (seen - self.contribution[block])
                self.variance[block] = rho * self.variance[block] + (1 - rho) * spread
            alive = socket.moe.expert_alive[block].nonzero().flatten()
            weights = (hp.efficiency, hp.specialisation, hp.resilience)
            score = sum(w * ranks(m) for w, m in zip(weights, self.measures(block, alive), strict=True)) / sum(weights)
            self.merit[block] = 1.0
            self.merit[block, alive] = (1 + hp.strength * (2 * score - 1)).to(self.merit.dtype)

    @torch.no_grad()
    def report(self, vitals: Vitals) -> None:
        for block, socket in enumerate(self._sockets):
            alive = socket.moe.expert_alive[block].nonzero().flatten()
            names = ("efficiency", "specialisation", "resilience")
            for name, measure in zip(names, self.measures(block, alive), strict=True):
                vitals.add(self.name, name, measure.mean(), socket.layer)
            vitals.add(self.name, "contribution", self.contribution[block, alive].mean(), socket.layer)
            vitals.add(self.name, "merit_std", self.merit[block, alive].std(correction=0), socket.layer)
