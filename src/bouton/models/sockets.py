"""Sockets: the typed places of a body where a mechanism may plug a part.

An exclusive socket holds one part, the body's plain one until a mechanism replaces it; a list socket holds any number.
What each kind of part takes and returns is stated in :data:`KINDS`. State is a ``dict`` of tensors, batch first; a part
gets None at the start of a sequence and returns the state after its last token (``{}`` if it has none).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from bouton.errors import SocketError

if TYPE_CHECKING:
    from bouton.mechanisms.base import Mechanism

State = dict[str, Any]

# Kind -> what a part does there. The order is the order of plugging: a mixer brings sockets of its own, which exist
# only after it is plugged in, so the composition does not depend on the order in which mechanisms are named.
KINDS: dict[str, str] = {
    "encoder": "tokens -> vectors: forward(tokens, ctx) -> (B, T, hidden)",
    "signals": "on the embedded tokens, to publish signals: forward(x, tokens, ctx, state) -> (x, state)",
    "stack": "the way through the blocks: forward(x, layers, ctx, state) -> (x, state by layer)",
    "mixer": "feed-forward block: forward(x, ctx, state) -> (y, state), x (B, T, hidden)",
    "routing": "which experts a token goes to: a bouton.models.router.Router",
    "router": "additive term on router logits (B, T, slots): forward(x, logits, ctx, state) -> (increment, state)",
    "kinetics": "of the experts of a block: forward(alive) -> Kinetics, alive (slots,) 1 or 0",
    "merit": "of the experts of a block: see(x, choice) in training; forward() -> factor of energy, (slots,)",
    "keys": "key transform after RoPE: forward(k, ctx, state) -> (k, state), k (B, H_kv, T, D)",
    "attention_core": "forward(q, k, v, ctx, state, *, bias, window) -> (context, state), q (B, H, T, D)",
    "synapse": "refines presyn's synapses: forward(q, ctx, state) -> (the value of its field of Refinements, state)",
    "attention_scores": "additive score term: forward(ctx, num_heads, tq, tk) -> (B or 1, H or 1, tq, tk)",
    "mixer_gate": "on the mixer's hidden layer: forward(x, ctx) -> x, x (B, T, width)",
    "activation": "the mixer's non-linearity: forward(x) -> x, x (..., width)",
    "branch": "beside a linear map y = x W: forward(x, y, ctx, state) -> (delta, state)",
    "plasticity": "on a fast-weight branch: forward(v, ctx, state) -> (gain of its learning rate or None, "
    "gate of its consolidation or None, state), v (B, heads, T, width), both (B, heads, T)",
    "gain": "of the current of spiking neurons: forward() -> (width,)",
    "threshold": "of spiking neurons: forward() -> (width,) or a number",
    "spikes": "sees what a layer of spiking neurons fires: forward(spikes) -> None, spikes (B, T, width)",
    "sensitivity": "of spiking neurons to the environment: forward() -> (width,) or a number",
    "initializer": "fills the weights: forward(name, tensor, draw) -> None",
}


class Socket(nn.Module):
    """Base of both kinds. ``layer`` is the index of its block (-1: the whole body)."""

    def __init__(self, kind: str, layer: int, **shape: Any) -> None:
        """``shape``: the numbers a part needs to be built, e.g. ``width`` or ``in_features`` (read as attributes)."""
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"unknown kind of socket {kind!r}")
        self.kind = kind
        self.layer = layer
        self.shape = shape

    def __getattr__(self, name: str) -> Any:
        shape = self.__dict__.get("shape", {})
        return shape[name] if name in shape else super().__getattr__(name)

    def extra_repr(self) -> str:
        return f"{self.kind}, layer={self.layer}, {self.shape}"


class ExclusiveSocket(Socket):
    """Holds exactly one part."""

    def __init__(self, kind: str, layer: int, plain: nn.Module, **shape: Any) -> None:
        super().__init__(kind, layer, **shape)
        self.part = plain
        self.owner: str | None = None

    def plug(self, mechanism: Mechanism, part: nn.Module) -> None:
        """Replace the plain part.

        Raises:
            SocketError: another mechanism has this socket.
        """
        if self.owner is not None:
            raise SocketError(
                f"mechanisms '{self.owner}' and '{mechanism.name}' both need the exclusive socket '{self.kind}': "
                f"use one of them"
            )
        self.owner = mechanism.name
        self.part = part

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.part(*args, **kwargs)


class ListSocket(Socket):
    """Holds any number of parts, by the name of their mechanism, applied in alphabetical order."""

    def __init__(self, kind: str, layer: int, **shape: Any) -> None:
        super().__init__(kind, layer, **shape)
        self.parts = nn.ModuleDict()

    def plug(self, mechanism: Mechanism, part: nn.Module) -> None:
        """Add a part.

        Raises:
            SocketError: this mechanism has already plugged a part here.
        """
        if mechanism.name in self.parts:
            raise SocketError(f"mechanism '{mechanism.name}' plugs twice into the socket '{self.kind}'")
        self.parts[mechanism.name] = part
        ordered = sorted(self.parts.items())
        self.parts = nn.ModuleDict(dict(ordered))

    def __len__(self) -> int:
        return len(self.parts)

    def __bool__(self) -> bool:
        return len(self.parts) > 0

    def items(self) -> Iterator[tuple[str, nn.Module]]:
        """Name of the mechanism, part."""
        return iter(self.parts.items())


class BranchedLinear(nn.Module):
    """A linear map y = x W^T + b with a ``branch`` socket beside it.

    Attributes:
        weight: (out_features, in_features).
        branch: list socket; parts see the input and the slow output, and their results are added to it.
    """

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool, site: str, layer: int, std: float = 0.02
    ) -> None:
        super().__init__()
        from bouton.models.layers import Linear

        self.linear = Linear(in_features, out_features, bias=bias, std=std)
        self.branch = ListSocket("branch", layer, site=site, in_features=in_features, out_features=out_features)

    def forward(self, x: Tensor, ctx: Any, state: State | None) -> tuple[Tensor, State]:
        """x (B, T, in_features) -> (B, T, out_features), and the state of the branches by mechanism."""
        slow = self.linear(x)
        if not self.branch:
            return slow, {}
        y, after = slow, {}
        for name, part in self.branch.items():
            delta, part_state = part(x, slow, ctx, None if state is None else state.get(name))
            y = y + delta
            if part_state:
                after[name] = part_state
        return y, after
