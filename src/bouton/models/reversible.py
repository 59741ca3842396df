"""Going through blocks with two coupled streams, and back: the gradient without stored activations.

    forward     a <- a + f(b);  b <- b + g(a);  a <- a + f'(b); ...        f, g, f', ... the branches of the blocks
    inverse     the same steps from the last to the first, with - for +

The backward pass inverts one step at a time and computes its branch once more, this time with a graph. So what is kept
is the two streams at the end, whatever the number of blocks (Gomez et al. 2017, the reversible residual network). A
branch computed again finds everything as it was: the state of the random generators, the signals that were published
by then, the sequence state before its tokens, autocast; and what it reports to the organism is dropped.

Gradients reach the parameters, both streams, the signals from before and from inside the blocks, and the given
sequence state; they come from the streams, the returned sequence state and the published signals.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bouton.mechanisms.base import Mechanism
from bouton.models.context import Context
from bouton.models.sockets import State


@dataclass
class Step:
    """One branch of one block, and what its second computation needs."""

    block: Any
    index: str
    branch: str
    target: int  # the stream that it adds to: 0 or 1; it reads the other
    random: list[Tensor] = field(default_factory=list)
    signals: dict[str, Tensor] = field(default_factory=dict)  # before it
    published: dict[str, Tensor] = field(default_factory=dict)  # by it
    after: State = field(default_factory=dict)  # its sequence state; tensors only until the pass has returned it


class Passage:
    """One pass of two streams (B, T, hidden) through ``layers``.

    Args:
        layers: blocks with ``branches`` and ``branch(name, x, ctx, state) -> (y, state)``, by index.
        ctx: the forward pass; the branches report and publish to it.
        state: the sequence state by index of the block, or None.
        mechanisms: whose observations must not be made twice.
        dtype: in which the branches get their input; the streams may be more precise.
    """

    def __init__(
        self,
        layers: Sequence[tuple[str, nn.Module]],
        ctx: Context,
        state: State | None,
        mechanisms: Sequence[Mechanism],
        dtype: torch.dtype,
    ) -> None:
        self.ctx, self.state, self.mechanisms, self.dtype = ctx, state, mechanisms, dtype
        names = [(block, index, branch) for index, block in layers for branch in block.branches]  # type: ignore[union-attr]
        self.steps = [Step(*name, target=i % 2) for i, name in enumerate(names)]
        self.signals = dict(ctx.signals)  # from before the blocks
        kind = ctx.positions.device.type
        self.autocast = (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))

    def forward(self, streams: list[Tensor]) -> list[Tensor]:
        """The streams after all steps; fills the steps' records."""
        for step in self.steps:
            step.random = self._random(streams[0].device)
            step.signals = dict(self.ctx.signals)
            y, step.after = self._branch(step, streams[1 - step.target].to(self.dtype), self.ctx, self.before(step))
            step.published = {n: s for n, s in self.ctx.signals.items() if step.signals.get(n) is not s}
            streams[step.target] = streams[step.target] + y
        return streams

    def inverse(self, streams: list[Tensor]) -> list[Tensor]:
        """The streams before all steps, from those after them; no graph."""
        with torch.no_grad():
            for step in reversed(self.steps):
                x = streams[1 - step.target].to(self.dtype)
                y, _, _ = self.again(step, x, step.signals, self.before(step))
                streams[step.target] = streams[step.target] - y
        return streams

    def again(
        self, step: Step, x: Tensor, signals: dict[str, Tensor], state: State | None
    ) -> tuple[Tensor, State, dict[str, Tensor]]:
        """What a step's branch computed, its state, and what it published; nobody else notices."""
        ctx = copy.copy(self.ctx)
        ctx.vitals, ctx.signals = None, dict(signals)
        with self._replaying(step):
            y, after = self._branch(step, x, ctx, state)
        return y, after, {name: s for name, s in ctx.signals.items() if signals.get(name) is not s}

    def before(self, step: Step) -> State | None:
        """The sequence state before a step's branch."""
        return None if self.state is None else self.state[step.index].get(step.branch)

    def finish(self) -> None:
        """Let go of what the pass has returned: the caller alone decides how long it lives."""
        self.ctx = copy.copy(self.ctx)
        self.ctx.vitals, self.ctx.signals = None, {}
        for step in self.steps:
            step.after = {}

    def _branch(self, step: Step, x: Tensor, ctx: Context, state: State | None) -> tuple[Tensor, State]:
        kind, dtype, enabled = self.autocast
        # Without autocast's cache: a weight that was cast lives no longer than its branch.
        with torch.autocast(kind, dtype, enabled=enabled, cache_enabled=False):
            y, after = step.block.branch(step.branch, x, ctx, state)
        return y, after

    @contextlib.contextmanager
    def _replaying(self, step: Step) -> Iterator[None]:
        device = self.ctx.positions.device
        now = self._random(device)
        observed = [dict(m._observed) for m in self.mechanisms]
        try:
            self._set_random(step.random, device)
            yield
        finally:
            self._set_random(now, device)
            for mechanism, sums in zip(self.mechanisms, observed, strict=True):
                mechanism._observed = sums

    def _random(self, device: torch.device) -> list[Tensor]:
        states = [torch.get_rng_state()]
        if device.type == "cuda":
            states.append(torch.cuda.get_rng_state(device))
        # Where nothing was drawn, the steps share one copy.
        last = next((step.random for step in reversed(self.steps) if step.random), None)
        if last is not None and all(torch.equal(a, b) for a, b in zip(states, last, strict=True)):
            return last
        return states

    @staticmethod
    def _set_random(states: list[Tensor], device: torch.device) -> None:
        torch.set_rng_state(states[0])
        if device.type == "cuda":
            torch.cuda.set_rng_state(states[1], device)


@torch.compiler.disable
def reversible(passage: Passage, streams: list[Tensor], parameters: Sequence[Tensor]) -> tuple[list[Tensor], State]:
    """Both streams after the passage, and the state by block; with the gradient by inversion where one is wanted.

    Args:
        streams: two tensors (B, T, hidden).
        parameters: all that the branches may use.
    """
    if not torch.is_grad_enabled():
        streams = passage.forward(streams)
        return streams, _by_block(passage.steps, [leaf for step in passage.steps for leaf in _leaves(step.after)])
    given = [*passage.signals.values(), *_leaves(passage.state or {})]
    ctx = passage.ctx
    first, second, *rest = _Inversion.apply(passage, *streams, *given, *parameters)
    count = sum(len(_leaves(step.after)) for step in passage.steps)
    state = _by_block(passage.steps, rest[:count])
    for name, signal in zip(_published(passage), rest[count:], strict=True):
        ctx.signals[name] = signal
    passage.finish()
    return [first, second], state


class _Inversion(torch.autograd.Function):
    """(streams, signals, state, parameters) -> (streams, state after, published signals)."""

    @staticmethod
    def forward(ctx: Any, passage: Passage, first: Tensor, second: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        a, b = passage.forward([first, second])
        ctx.passage = passage
        ctx.parameters = given[len(passage.signals) + len(_leaves(passage.state or {})) :]
        ctx.given = [(tensor, tensor._version) for tensor in given]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(a, b)
        published = [passage.ctx.signals[name] for name in _published(passage)]
        ctx.published = [id(signal) for signal in published]
        # New tensors: this node must not hold its own results, and one tensor in two places is two results.
        inner = [*(leaf for step in passage.steps for leaf in _leaves(step.after)), *published]
        results = [result.detach() for result in inner]
        ctx.mark_non_differentiable(*(result for result in results if not result.is_floating_point()))
        return a, b, *results

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_a: Tensor | None, grad_b: Tensor | None, *grads: Tensor | None) -> tuple[Any, ...]:
        passage: Passage = ctx.passage
        if any(tensor._version != version for tensor, version in ctx.given):
            raise RuntimeError("a parameter, signal or state was changed in place between the two passes")
        streams: list[Tensor] = [stream.detach() for stream in ctx.saved_tensors]
        flow = [torch.zeros_like(s) if g is None else g for s, g in zip(streams, (grad_a, grad_b), strict=True)]
        total: dict[int, Tensor] = {}  # id of a signal, a leaf of the given state, or a parameter -> its gradient

        def add(to: Tensor, grad: Tensor | None) -> None:
            if grad is not None:
                total[id(to)] = total[id(to)] + grad if id(to) in total else grad

        after = grads[: len(grads) - len(ctx.published)]
        for key, grad in zip(ctx.published, grads[len(after) :], strict=True):
            if grad is not None:
                total[key] = grad
        end = len(after)
        for step in reversed(passage.steps):
            before = passage.before(step)
            x = streams[1 - step.target].to(passage.dtype).detach().requires_grad_()
            signals = {name: _leaf(signal) for name, signal in step.signals.items()}
            state = None if before is None else _map(before, _leaf)
            with torch.enable_grad():
                y, new, published = passage.again(step, x, signals, state)
            results: list[tuple[Tensor, Tensor | None]] = [(y, flow[step.target].to(y.dtype))]
            leaves = _leaves(new)
            results += zip(leaves, after[end - len(leaves) : end], strict=True)
            end -= len(leaves)
            results += [(signal, total.pop(id(step.published[name]), None)) for name, signal in published.items()]
            wanted = [(output, grad) for output, grad in results if grad is not None and output.requires_grad]
            sources = [*zip(signals.values(), step.signals.values(), strict=True)]
            if before is not None:
                sources += zip(_leaves(state), _leaves(before), strict=True)
            sources += [(parameter, parameter) for parameter in ctx.parameters]
            sources = [(leaf, original) for leaf, original in sources if leaf.requires_grad]
            found = torch.autograd.grad(
                [output for output, _ in wanted],
                [x, *(leaf for leaf, _ in sources)],
                [grad for _, grad in wanted],
                allow_unused=True,
            )
            if found[0] is not None:
                flow[1 - step.target] = flow[1 - step.target] + found[0]
            for (_, original), grad in zip(sources, found[1:], strict=True):
                add(original, grad)
            streams[step.target] = streams[step.target] - y.detach()
        return None, *flow, *(total.get(id(tensor)) for tensor, _ in ctx.given)


def _published(passage: Passage) -> list[str]:
    """Signals that are others after the passage than before."""
    return [name for name, signal in passage.ctx.signals.items() if passage.signals.get(name) is not signal]


def _leaf(tensor: Tensor) -> Tensor:
    leaf = tensor.detach()
    return leaf.requires_grad_() if leaf.is_floating_point() else leaf


def _leaves(state: Any) -> list[Any]:
    """The tensors of a state, in the order of its keys."""
    if not isinstance(state, dict):
        return [state]
    return [leaf for value in state.values() for leaf in _leaves(value)]


def _map(state: Any, function: Any) -> Any:
    if not isinstance(state, dict):
        return function(state)
    return {name: _map(value, function) for name, value in state.items()}


def _by_block(steps: Sequence[Step], leaves: list[Tensor]) -> State:
    """The state as the blocks would return it, of these tensors."""
    state: State = {}
    rest = iter(leaves)
    for step in steps:
        own = _map(step.after, lambda _: next(rest))
        block = state.setdefault(step.index, {})
        if own:
            block[step.branch] = own
    return state
