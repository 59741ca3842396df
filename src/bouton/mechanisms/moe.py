"""moe: a mixture of experts with an economy, in the place of every mixer.

    y = sum_j g_j E_j(x)                             over the k experts with the largest router logits
    logit_e = W_e x + b_energy (A_e - 1) - b_fatigue (f_e - 1) + offset_e
    g = softmax over the chosen logits; with k = 1 the probability among all, else the router would get no gradient

Once per optimizer step, u_e being the share of the routed tokens times the number of living experts (1: a fair share):

    A_e <- clip(A_e + income (u_e - tax_e A_e), 0, A_max)       energy; at rest u_e / tax_e
    f_e <- rho f_e + (1 - rho) u_e                              fatigue; rho = exp(-1 / tau_fatigue)

With b_fatigue >= b_energy an expert with more than its share loses logits: the load is balanced without a loss term.
One can be added: ``balance`` times the mean fatigue that the router's probabilities choose. It takes the load from the
fatigue, the load of the last steps, not from the present batch: so N devices compute the loss that one would.

All experts share the hidden layer's activation and gates. No capacity limit: no token depends on another.

An expert whose energy was below ``merge_energy`` for ``patience`` steps is merged into the nearest one and frees its
slot; one above ``split_energy`` is split if a slot is free (see :mod:`bouton.mechanisms.lifecycle`).

The present energy and fatigue are computed in the forward pass from what the last step left and saw, so that the
gradient reaches what the kinetics are made of (genome).
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from bouton.errors import ConfigError
from bouton.mechanisms import lifecycle
from bouton.mechanisms.base import Mechanism
from bouton.mechanisms.economy import A_MAX, ExpertTrait, Kinetics, PlainKinetics, PlainMerit, advance
from bouton.mechanisms.lineage import Lineage
from bouton.mechanisms.parameters import Params, integer, real
from bouton.mechanisms.pictures import Picture
from bouton.mechanisms.registry import register
from bouton.models.experts import Dispatch, Experts, gini
from bouton.models.router import Choice, Router
from bouton.models.routing_tree import Routes, Tree
from bouton.models.sockets import ExclusiveSocket, State

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from bouton.mechanisms.vitals import Vitals
    from bouton.models.body import Body
    from bouton.models.context import Context
    from bouton.models.initialize import Draw
    from bouton.models.transformer import TransformerConfig

_DEAD = 0.01  # of a fair share


@dataclass(frozen=True)
class MoeParams(Params):
    """Parameters of :class:`Moe`."""

    max_experts: int = integer(8, "slots for experts in each block; 1 leaves the plain block", low=1)
    experts: int = integer(4, "experts at the start", low=1)
    top_k: int = integer(2, "experts per token; 0: all of them (dense)", low=0)
    ratio: float | None = real(None, "width of an expert / hidden_size; null: model.mixer_ratio", low=0, low_open=True)
    income: float = real(0.05, "rate at which the energy follows the use", low=0, low_open=True, high=1, scale="log")
    tau_fatigue: float = real(20.0, "time constant of the fatigue", unit="optimizer steps", low=1, scale="log")
    b_energy: float = real(0.5, "router logits per unit of energy", unit="nats", low=0)
    b_fatigue: float = real(1.0, "router logits per unit of fatigue, at least b_energy", unit="nats", low=0)
    balance: float = real(0.0, "weight of the loss for choosing tired experts; 0: none", unit="nats", low=0)
    patience: int = integer(100, "steps in want or wealth before a merge or a split", unit="optimizer steps", low=1)
    split_energy: float = real(2.0, "energy above which an expert splits", low=0, high=A_MAX, low_open=True)
    merge_energy: float = real(0.25, "energy below which an expert is merged", low=0, high=A_MAX)

    def check(self) -> None:
        if self.experts > self.max_experts:
            raise ConfigError(f"experts = {self.experts} is more than max_experts = {self.max_experts} slots")
        if self.top_k > self.experts:
            raise ConfigError(f"top_k = {self.top_k} is more than experts = {self.experts}: choose fewer, or 0 for all")
        if self.b_fatigue < self.b_energy:
            raise ConfigError(
                f"b_fatigue = {self.b_fatigue} is less than b_energy = {self.b_energy}: busy experts would attract "
                f"ever more tokens"
            )
        if self.merge_energy >= self.split_energy:
            raise ConfigError(
                f"merge_energy = {self.merge_energy} is not less than split_energy = {self.split_energy}: an expert "
                f"would be split and merged at once"
            )


class ExpertMixer(nn.Module):
    """The part in one mixer socket: router and experts."""

    def __init__(self, moe: Moe, config: TransformerConfig, layer: int, index: int) -> None:
        super().__init__()
        hp: MoeParams = moe.hp
        if hp.ratio is not None:
            config = dataclasses.replace(config, mixer_ratio=hp.ratio)
        self._moe = (moe,)  # in a tuple: the mechanism is no child of its part
        self.layer, self.index = layer, index
        places = hp.top_k or hp.experts
        hidden = config.hidden_size
        self.routing = ExclusiveSocket(
            "routing",
            layer,
            Router(hidden, hp.max_experts, hp.top_k, layer, config.std(hidden)),
            hidden_size=hidden,
            slots=hp.max_experts,
            roots=hp.experts,
            top_k=hp.top_k,
            std=config.std(hidden),
        )
        self.experts = Experts(config, layer, hp.max_experts, places)
        shape = {"slots": hp.max_experts, "hidden_size": hidden, "moe": moe, "block": index}
        self.kinetics = ExclusiveSocket("kinetics", layer, PlainKinetics(hp.tau_fatigue), **shape)
        self.merit = ExclusiveSocket("merit", layer, PlainMerit(), **shape)

    def traits(self) -> list[ExpertTrait]:
        """The parts that follow the experts."""
        return [socket.part for socket in (self.kinetics, self.merit) if isinstance(socket.part, ExpertTrait)]

    @property
    def router(self) -> Router:
        """The router in use."""
        part = self.routing.part
        assert isinstance(part, Router)
        return part

    def forward(self, x: Tensor, ctx: Context, state: State | None) -> tuple[Tensor, State]:
        """x (B, T, hidden) -> (B, T, hidden), state of the parts of the router and of the branches."""
        moe, before = self._moe[0], {} if state is None else state
        routes = moe.routes(self.index)
        bias = moe.bias(self.index)
        choice, router_state = self.router(x, bias, routes, ctx, before.get("router"))
        y, experts_state, dispatch = self.experts(x, choice, ctx, before.get("experts"))
        if self.training:
            moe.observe_use(self.index, choice, dispatch)
            moe.charge(self.index, choice, routes)
            merit: Any = self.merit.part
            merit.see(x, choice)
        if ctx.vitals is not None:
            self._report(ctx, choice, dispatch, routes)
        return y, {name: s for name, s in (("router", router_state), ("experts", experts_state)) if s}

    @torch.no_grad()
    def _report(self, ctx: Context, choice: Choice, dispatch: Dispatch, routes: Routes) -> None:
        alive = self._moe[0].expert_alive[self.index].bool()
        share = dispatch.counts[alive].double() / dispatch.counts.sum()
        ctx.report(Moe.name, "load_gini", gini(share), self.layer)
        ctx.report(Moe.name, "dead_fraction", (share < _DEAD / len(share)).double().mean(), self.layer)
        entropy = torch.special.entr(choice.probabilities).sum(-1).mean()
        ctx.report(Moe.name, "router_entropy", entropy, self.layer)


@register
class Moe(Mechanism):
    """A mixture of experts with an energy account, in every block.

    Attributes:
        parts: the mixers, one per block.
        expert_alive, expert_energy, expert_fatigue, expert_use: (blocks, slots); energy and fatigue as they were before
            the last step, use what it saw.
        wealth, want: (blocks, slots) steps in a row above ``split_energy`` and below ``merge_energy``.
        offset: (blocks, 2 slots - 1) on the logits of roots and nodes; makes a split leave them as they were, then
            fades with ``tau_fatigue``.
        entry, nodes: the routing trees, see :class:`~bouton.models.routing_tree.Tree`.
        individuals: (blocks, slots, 3) id, parent's id, step of birth; -1 for none.
    """

    expert_alive: Tensor
    expert_energy: Tensor
    expert_fatigue: Tensor
    expert_use: Tensor
    wealth: Tensor
    want: Tensor
    offset: Tensor
    entry: Tensor
    nodes: Tensor
    individuals: Tensor
    splits: Tensor
    merges: Tensor
    steps: Tensor
    seed: Tensor

    name = "moe"
    summary = "mixture of experts in place of the mixer, balanced by an energy account"
    source = "Shazeer et al. 2017; Wang et al. 2024 (balance without a loss)"
    sockets = ("mixer",)
    Params = MoeParams
    state = "none of its own; that of the parts on the router and beside the experts"
    neutral: ClassVar[Mapping[str, Any] | None] = {"max_experts": 1, "experts": 1, "top_k": 1}
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "lively": {"income": 0.9, "patience": 1, "split_energy": 1.1, "merge_energy": 0.9, "experts": 6, "top_k": 1},
        "top1": {"top_k": 1, "ratio": 1.0},
        "dense": {"top_k": 0, "balance": 0.1},
    }
    vital_names: ClassVar[Mapping[str, str]] = {
        "load_gini": "Gini coefficient of the tokens per living expert: 0 if all get the same",
        "dead_fraction": f"share of living experts with less than {_DEAD} of their fair share of the tokens",
        "router_entropy": "mean entropy of the router's probabilities, in nats",
        "alive": "living experts per block",
        "energy": "mean energy of the living experts",
        "splits": "experts split so far, per block",
        "merges": "experts merged so far, per block",
    }

    def __init__(self, params: MoeParams | None = None) -> None:
        super().__init__(params)
        self._prices: dict[int, Tensor] = {}  # of the last forward pass, per block
        self._folder: Path | None = None
        self.parts: list[ExpertMixer] = []  # a plain list: they belong to the body's tree, not to this one
        self._routes: tuple[Any, list[tuple[Tree, Routes]]] | None = None

    def plug(self, body: Body) -> None:
        hp: MoeParams = self.hp
        if hp.max_experts == 1:
            return
        sockets = body.sockets("mixer")
        layers, slots = len(sockets), hp.max_experts
        for name in ("alive", "energy", "fatigue", "use"):
            self.organism_state(f"expert_{name}", (layers, slots), initial=1.0)
        for name in ("wealth", "want"):
            self.organism_state(name, (layers, slots))
        self.organism_state("offset", (layers, 2 * slots - 1))
        integers = {
            "entry": (layers, slots),
            "nodes": (layers, slots - 1, 2),
            "individuals": (layers, slots, 3),
            "splits": (layers,),
            "merges": (layers,),
            "steps": (),
            "seed": (),
        }
        for name, shape in integers.items():
            self.register_buffer(name, torch.empty(shape, dtype=torch.int64))
        for index, socket in enumerate(sockets):
            part = ExpertMixer(self, socket.config, socket.layer, index)
            socket.plug(self, part)
            self.parts.append(part)

    def initialize_parameters(self, draw: Draw) -> None:
        super().initialize_parameters(draw)
        slots = torch.arange(self.hp.max_experts)
        first = slots < self.hp.experts
        draw.constant(self.expert_alive, first.float())
        draw.constant(self.entry, torch.where(first, slots, -1))
        draw.constant(self.nodes, -1)
        nobody = torch.full_like(slots, -1)
        origins = torch.stack((torch.where(first, slots, -1), nobody, torch.where(first, 0, -1)), dim=-1)
        draw.constant(self.individuals, origins)
        for counter in (self.splits, self.merges, self.steps):
            draw.constant(counter, 0)
        draw.constant(self.seed, draw.seed)

    # -- the economy in the forward pass ------------------------------------------------------------------------

    def tree(self, index: int) -> Tree:
        """The routing tree of a block, on the host; a copy that may be changed."""
        return copy.deepcopy(self._trees()[index][0])

    def routes(self, index: int) -> Routes:
        """The routing tree of a block, for the router."""
        return self._trees()[index][1]

    def plant(self, index: int, tree: Tree) -> None:
        """Put ``tree`` in the place of a block's routing tree."""
        self.entry[index] = torch.tensor(tree.entry)
        self.nodes[index] = torch.tensor(tree.children)
        self.expert_alive[index] = 0
        self.expert_alive[index, tree.alive] = 1

    def _trees(self) -> list[tuple[Tree, Routes]]:
        # The buffers change in place only (a checkpoint, a split), and seldom: the host's copy is kept till then.
        key = (self.entry, self.entry._version, self.nodes, self.nodes._version)
        if self._routes is None or any(a is not b and a != b for a, b in zip(key, self._routes[0], strict=True)):
            trees = [Tree(*host) for host in zip(self.entry.tolist(), self.nodes.tolist(), strict=True)]
            with torch.inference_mode(False):  # whoever asks first: training needs them as well
                self._routes = key, [(t, Routes.of(t, self.entry[i], self.nodes[i])) for i, t in enumerate(trees)]
        return self._routes[1]

    def kinetics(self, index: int) -> Kinetics:
        """The kinetics of a block's experts."""
        kinetics: Kinetics = self.parts[index].kinetics(self.expert_alive[index])
        return kinetics

    def present(self, index: int, kinetics: Kinetics) -> tuple[Tensor, Tensor]:
        """Energy and fatigue of a block's experts now, (slots,) each."""
        energy, fatigue, use = self.expert_energy[index], self.expert_fatigue[index], self.expert_use[index]
        return advance(energy, fatigue, use, self.hp.income, kinetics)

    def bias(self, index: int) -> Tensor:
        """(2 slots - 1,): what is added to the logits of the roots and nodes of a block: a mean over their experts."""
        kinetics = self.kinetics(index)
        energy, fatigue = self.present(index, kinetics)
        own = kinetics.gain * (self.hp.b_energy * (energy - 1) - self.hp.b_fatigue * (fatigue - 1))
        means: Tensor = self.routes(index).membership.to(own.dtype) @ own
        return means + self.offset[index]

    @torch.compiler.disable
    def observe_use(self, index: int, choice: Choice, dispatch: Dispatch) -> None:
        """Note who worked. In a dense mixture everyone sees every token: there the gates tell the shares."""
        counts = dispatch.counts.double()
        if self.hp.top_k == 0:
            gates = choice.gates.detach().double().flatten()
            counts = torch.zeros_like(counts).index_add_(0, choice.experts.flatten(), gates)
        self.observe(f"use{index:04d}", counts, counts.sum())

    def charge(self, index: int, choice: Choice, routes: Routes) -> None:
        """Note the mean fatigue that a block's router chooses, for the loss."""
        if self.hp.balance == 0:
            return
        fatigue = self.present(index, self.kinetics(index))[1].detach()
        price = routes.membership[: len(fatigue)].to(fatigue.dtype) @ fatigue
        self._prices[index] = (choice.probabilities @ price.to(choice.probabilities.dtype)).mean()

    def auxiliary_loss(self) -> Tensor | None:
        if not self._prices:
            return None
        prices, self._prices = self._prices, {}
        weight: float = self.hp.balance
        return weight * torch.stack(list(prices.values())).mean()

    def update_organism(self, means: Mapping[str, Tensor]) -> None:
        for index in range(len(self.parts)):
            if (share := means.get(f"use{index:04d}")) is None:
                continue
            energy, fatigue = self.present(index, self.kinetics(index))
            self.expert_energy[index], self.expert_fatigue[index] = energy, fatigue
            self.expert_use[index] = share * self.routes(index).alive
            self.offset[index] *= math.exp(-1 / self.hp.tau_fatigue)
            worth, alive = self.worth(index), self.expert_alive[index]
            self.wealth[index] = torch.where(worth > self.hp.split_energy, self.wealth[index] + 1, 0) * alive
            self.want[index] = torch.where(worth < self.hp.merge_energy, self.want[index] + 1, 0) * alive
        if means:
            self.steps += 1

    # -- splits and merges --------------------------------------------------------------------------------------

    def worth(self, index: int) -> Tensor:
        """(slots,) what decides over splits and merges in a block: the energy, times the merit where there is one."""
        energy: Tensor = self.expert_energy[index] * self.parts[index].merit()
        return energy

    def restructure(self, optimizer: Optimizer | None) -> None:
        if not self.parts or not bool((torch.maximum(self.wealth, self.want) >= self.hp.patience).any()):
            return
        happened = [event for index in range(len(self.parts)) for event in lifecycle.step(self, index, optimizer)]
        if happened and self._folder is not None and (lineage := Lineage.read(self._folder)) is not None:
            for event in happened:
                event(lineage)
            lineage.write(self._folder)

    def on_train_start(self) -> None:
        """Begin the lineage in the run folder, or go on with it."""
        if not self.parts or not self.trainer.is_global_zero:
            return
        self._folder = Path(self.trainer.default_root_dir)
        lineage, step = Lineage.read(self._folder), int(self.steps)
        if lineage is None or step == 0:
            lineage = Lineage([[] for _ in self.parts])
        lineage.forget_after(step)
        lineage.add_living(self.individuals)
        lineage.write(self._folder)

    def _lineage(self) -> Lineage:
        """That of the run folder; outside of a run that of the living alone."""
        found = None if self._folder is None else Lineage.read(self._folder)
        if found is None:
            found = Lineage([[] for _ in self.parts])
            found.add_living(self.individuals)
        return found

    def pictures(self, states: Sequence[Mapping[str, Any]]) -> dict[str, Picture]:
        """The energy and the fatigue of every living expert, block by block, and the lives of all that there were."""
        if not self.parts:
            return {}
        living = self.expert_alive.bool()
        lives = self._lineage().lives(int(self.steps))
        return {"lineage": Picture(lives, "expert", "time", panels="block", unit="generation")} | {
            name: Picture(
                torch.where(living, values.float(), torch.nan), "block", "slot", unit=f"{name} (1: fair share)"
            )
            for name, values in (("energy", self.expert_energy), ("fatigue", self.expert_fatigue))
        }

    @torch.no_grad()
    def report(self, vitals: Vitals) -> None:
        for index, part in enumerate(self.parts):
            alive = self.expert_alive[index].bool()
            vitals.add(self.name, "splits", self.splits[index], part.layer)
            vitals.add(self.name, "merges", self.merges[index], part.layer)
            vitals.add(self.name, "alive", float(self.routes(index).alive), part.layer)
            vitals.add(self.name, "energy", self.present(index, self.kinetics(index))[0][alive].mean(), part.layer)
