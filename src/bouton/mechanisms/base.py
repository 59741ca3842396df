"""What a mechanism is: a Lightning component that plugs parts into the sockets of a body.

One file per mechanism holds its parameters (:class:`~bouton.mechanisms.parameters.Params`), its parts (plain modules
with an explicit ``state -> state`` forward) and a subclass of :class:`Mechanism` that plugs them in. The parts become
part of the body's tree; the mechanism itself holds what belongs to the whole model: organism state and vitals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import lightning
import torch
from torch import Tensor

from bouton.mechanisms import parameters
from bouton.mechanisms.pictures import Picture
from bouton.mechanisms.vitals import Vitals

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from bouton.models.body import Body
    from bouton.models.initialize import Draw


class Mechanism(lightning.LightningModule):
    """Base class of all mechanisms. Subclass it, declare the class variables, implement :meth:`plug`, ``@register`` it.

    Organism state (expert energy, homeostatic thresholds) is registered with :meth:`organism_state` as buffers. During
    training the parts :meth:`observe` sums; once per optimizer step the training module reduces them over all ranks
    and :meth:`update_organism` gets the means, so that N devices compute what one device would.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]  # the paper
    sockets: ClassVar[tuple[str, ...]]  # kinds of sockets it plugs into
    Params: ClassVar[type[parameters.Params]] = parameters.Params
    refines: ClassVar[tuple[str, ...]] = ()  # mechanisms that must be present as well
    publishes: ClassVar[tuple[str, ...]] = ()  # signals it provides
    reads: ClassVar[tuple[str, ...]] = ()  # signals it cannot do without
    ops: ClassVar[tuple[str, ...]] = ()  # ops whose backends it uses
    state: ClassVar[str] = "none"  # its sequence state in words, with shapes
    neutral: ClassVar[Mapping[str, Any] | None] = None  # parameter values that make it equal to the plain body
    # label -> parameter values the contract also tests; under the name of a refined mechanism stand values for that one
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    skips: ClassVar[Mapping[str, str]] = {}  # contract clause, or clause[variant] -> why it cannot be satisfied
    vital_names: ClassVar[Mapping[str, str]] = {}  # vital -> what it measures

    recomputes: bool = False  # it computes the blocks without a graph, and once more in the backward pass
    needs_graph: bool = False  # its own loss is made of what blocks compute

    def __init__(self, params: parameters.Params | None = None) -> None:
        super().__init__()
        self.hp: Any = self.Params() if params is None else params
        self._observed: dict[str, tuple[Tensor, Tensor]] = {}
        self._organism_initial: dict[str, float] = {}

    def plug(self, body: Body) -> None:
        """Plug this mechanism's parts into ``body``'s sockets.

        Raises:
            SocketError: the body lacks a socket, or an exclusive one is taken.
            ConfigError: the body's options do not fit this mechanism.
        """
        raise NotImplementedError(f"{type(self).__qualname__} does not implement plug(body)")

    def report(self, vitals: Vitals) -> None:
        """Add the vitals that come from parameters or organism state; those of a forward pass its parts report."""

    def pictures(self, states: Sequence[Mapping[str, Any]]) -> dict[str, Picture]:
        """What there is to see of one sequence: name -> picture. Override it to have them drawn, logged and shown.

        Args:
            states: what the body returned as its state after each of T tokens, read one by one, in a batch of one;
                :func:`bouton.mechanisms.pictures.find` picks this mechanism's part of it, layer by layer.
        """
        return {}

    def auxiliary_loss(self) -> Tensor | None:
        """A loss term that this mechanism adds to training, or None."""
        return None

    def organism_state(self, name: str, shape: Sequence[int] = (), initial: float = 0.0) -> None:
        """Register a checkpointed float32 buffer of ``shape``, filled with ``initial``, updated once per step."""
        self.register_buffer(name, torch.full(tuple(shape), initial, dtype=torch.float32))
        self._organism_initial[name] = initial

    def initialize_parameters(self, draw: Draw) -> None:
        """Fill the organism state with its initial values."""
        for name, initial in self._organism_initial.items():
            draw.constant(self.get_buffer(name), initial)

    def observe(self, name: str, total: Tensor, count: Tensor | float) -> None:
        """Add ``total`` (a sum over samples) and ``count`` (their number) to what this optimizer step has seen.

        Call it in a forward pass of training only. Sums, not means: they add up over micro-batches and ranks.
        """
        total = total.detach().double()
        number = torch.as_tensor(count, dtype=torch.float64, device=total.device)
        if name in self._observed:
            before, n = self._observed[name]
            total, number = before + total, n + number
        self._observed[name] = (total, number)

    def observe_loss(self, total: Tensor, count: Tensor) -> None:
        """See the loss of a training batch: its sum over target tokens (nats), and their number. Override to use it."""

    def commit_observations(self, reduce: Callable[[Tensor], Tensor]) -> None:
        """Reduce the observed sums with ``reduce`` (a sum over ranks), then :meth:`update_organism` with the means."""
        if not self._observed:
            return
        names = sorted(self._observed)
        flat = [part.reshape(-1) for name in names for part in self._observed[name]]
        reduced = reduce(torch.cat(flat)).split([part.numel() for part in flat])
        means = {}
        for i, name in enumerate(names):
            total, count = (reduced[2 * i + k].view_as(self._observed[name][k]) for k in range(2))
            means[name] = total / count.clamp_min(1e-12)
        self._observed = {}
        with torch.no_grad():
            self.update_organism(means)

    def update_organism(self, means: Mapping[str, Tensor]) -> None:
        """Update the organism state from the ``means`` (float64) observed over the whole batch of this step."""

    def restructure(self, optimizer: Optimizer | None) -> None:
        """Change parts of the model (split or merge experts), after the update of the weights, once per step.

        What is decided must be equal on all ranks: from organism state, weights, and a generator that all ranks share.

        Args:
            optimizer: its state for a parameter follows what happens to the parameter; None: there is none.
        """
