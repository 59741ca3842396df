"""What all bodies share: finding sockets, plugging mechanisms, counting parameters and FLOPs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bouton.errors import ConfigError, SocketError
from bouton.mechanisms.base import Mechanism
from bouton.mechanisms.vitals import Vitals
from bouton.models.sockets import KINDS, ExclusiveSocket, Socket, State


class Body(nn.Module):
    """An ordinary model with sockets. Subclasses implement ``forward`` with explicit sequence state.

    Attributes:
        mechanisms: name -> mechanism; they hold organism state, their parts sit in the sockets.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    max_seq_len: int
    provides: tuple[str, ...] = ()  # mechanisms that it has built in, for those that refine them
    num_labels: int | None = None  # of a token, which the outputs are of then; None: they are of the next token
    reports_vitals = False  # it has vitals of its own, whatever is plugged in
    learns_locally = False  # by its own `learn`, without gradients
    variable_state: tuple[str, ...] = ()  # names in its state whose shapes depend on what it has learned

    def __init__(self) -> None:
        super().__init__()
        self.mechanisms = nn.ModuleDict()

    def forward(
        self,
        tokens: Tensor,
        state: State | None = None,
        *,
        starts: Tensor | None = None,
        samples: Tensor | None = None,
        vitals: Vitals | None = None,
    ) -> tuple[Tensor, State]:
        """tokens (B, T) int64 -> logits (B, T, vocab or num_labels) and the state after the last token.

        Args:
            state: what an earlier call returned, to go on from there; None: a fresh sequence. Any split of a sequence
                into calls gives the same logits.
            starts: (B, T) bool, True at the first token of a new document: all sequence state starts fresh there.
            samples: (B,) int64, number of the sample that each row is, for mechanisms that draw random numbers: N ranks
                draw what one would. None: 0, 1, ... B - 1.
            vitals: collector of vitals; None: none are computed.
        """
        raise NotImplementedError

    def sockets(self, kind: str) -> list[Any]:
        """All sockets of one kind, from the first layer to the last.

        Raises:
            SocketError: this body has none.
        """
        if kind not in KINDS:
            raise ValueError(f"unknown kind of socket {kind!r}")
        found = [module for module in self.modules() if isinstance(module, Socket) and module.kind == kind]
        if not found:
            present = {module.kind for module in self.modules() if isinstance(module, Socket)}
            owners = {module.owner for module in self.modules() if isinstance(module, ExclusiveSocket) and module.owner}
            replaced = ", beside what " + " and ".join(f"'{o}'" for o in sorted(owners)) + " replaced" if owners else ""
            raise SocketError(
                f"body '{type(self).__name__.lower()}' has no socket '{kind}' here; it has "
                f"{', '.join(sorted(present))}{replaced}"
            )
        return found

    def plug(self, mechanisms: Sequence[Mechanism]) -> None:
        """Plug the mechanisms in, in the order of the kinds of their sockets, whatever order they are given in.

        What refines another mechanism comes after it: that one's parts bring the sockets that it needs.

        Raises:
            SocketError: two want one exclusive socket, a socket is missing, a signal has no publisher, or a
                mechanism lacks one that it refines.
        """
        names = [mechanism.name for mechanism in mechanisms]
        built_in = [name for name in self.provides if name not in names]
        published = {signal: m.name for m in mechanisms for signal in m.publishes}
        for mechanism in mechanisms:
            if missing := [name for name in mechanism.refines if name not in [*names, *built_in]]:
                raise SocketError(
                    f"mechanism '{mechanism.name}' refines '{missing[0]}', which is not there: use "
                    f"mechanism={'+'.join(sorted([*names, *missing]))}"
                )
            if unheard := [signal for signal in mechanism.reads if signal not in published]:
                raise SocketError(
                    f"mechanism '{mechanism.name}' reads the signal '{unheard[0]}', which none of "
                    f"{', '.join(sorted(names))} publishes"
                )
        order = list(KINDS)
        refines = {m.name: [name for name in m.refines if name in names] for m in mechanisms}
        first = {m.name: min((order.index(kind) for kind in m.sockets), default=0) for m in mechanisms}

        def turn(name: str) -> tuple[int, int, str]:
            before = [turn(refined) for refined in refines[name]]
            own = (first[name], 0, name)
            return max([own, *((kind, depth + 1, name) for kind, depth, _ in before)])

        for mechanism in sorted(mechanisms, key=lambda m: turn(m.name)):
            try:
                mechanism.plug(self)
            except SocketError as error:
                if f"'{mechanism.name}'" in str(error):
                    raise
                raise SocketError(f"mechanism '{mechanism.name}': {error}") from None
            except ConfigError as error:
                raise ConfigError(f"mechanism '{mechanism.name}': {error}") from None
        for mechanism in sorted(mechanisms, key=lambda m: m.name):
            self.mechanisms[mechanism.name] = mechanism
        recomputing = next((m.name for m in mechanisms if m.recomputes), None)
        if recomputing and (name := next((m.name for m in mechanisms if m.needs_graph), None)):
            raise SocketError(
                f"mechanism '{name}' has a loss of its own that gets no gradient with '{recomputing}', which keeps no "
                f"graph of the blocks: switch that loss off, or leave out one of the two"
            )

    def mechanism_list(self) -> list[Mechanism]:
        """The plugged mechanisms, sorted by name."""
        return [m for m in self.mechanisms.values() if isinstance(m, Mechanism)]

    def report_vitals(self, vitals: Vitals | None) -> None:
        """Let the mechanisms add the vitals that do not come from a forward pass."""
        if vitals is not None:
            for mechanism in self.mechanism_list():
                mechanism.report(vitals)

    def commit_observations(self, reduce: Callable[[Tensor], Tensor]) -> None:
        """Once per optimizer step: update all organism state from what all ranks observed."""
        for mechanism in self.mechanism_list():
            mechanism.commit_observations(reduce)

    @torch.no_grad()
    def observe_loss(self, total: Tensor, count: Tensor) -> None:
        """In training, after a forward pass: the summed loss of its targets (nats) and their number."""
        for mechanism in self.mechanism_list():
            mechanism.observe_loss(total, count)

    @torch.no_grad()
    def restructure(self, optimizer: Optimizer | None) -> None:
        """Once per optimizer step, after it: let the mechanisms change their parts, and the optimizer's state."""
        for mechanism in self.mechanism_list():
            mechanism.restructure(optimizer)

    def auxiliary_loss(self) -> Tensor | None:
        """Sum of the mechanisms' own loss terms, None if there are none.

        Raises:
            SocketError: a term was put aside inside blocks that another mechanism computes without a graph.
        """
        terms = []
        recomputing = next((m.name for m in self.mechanism_list() if m.recomputes), None)
        for m in self.mechanism_list():
            if (term := m.auxiliary_loss()) is None:
                continue
            if recomputing and torch.is_grad_enabled() and not term.requires_grad:
                raise SocketError(
                    f"mechanism '{m.name}' has a loss of its own that gets no gradient with '{recomputing}', which "
                    f"keeps no graph of the blocks: switch that loss off, or leave out one of the two"
                )
            terms.append(term)
        return sum(terms[1:], terms[0]) if terms else None

    def num_parameters(self) -> int:
        """Number of trainable parameters, shared ones counted once."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def flops_per_token(self, seq_len: int | None = None) -> float:
        """FLOPs of a forward pass per token, averaged over a sequence of ``seq_len`` (training costs 3 times that).

        Every module that computes states its own share in ``flops_per_token``; cheap elementwise work is left out.
        """
        length = self.max_seq_len if seq_len is None else seq_len
        return float(
            sum(
                module.flops_per_token(length)  # type: ignore[operator]
                for module in self.modules()
                if module is not self and callable(getattr(module, "flops_per_token", None))
            )
        )
