"""The passage through coupled streams: all gradients against ordinary autograd, memory, and no side effects."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bouton.mechanisms import Mechanism, Vitals
from bouton.models.context import Context
from bouton.models.reversible import Passage, _by_block, _leaves, reversible
from bouton.models.sockets import State

WIDTH = 6


class Spy(Mechanism):
    """Counts what it observes."""

    name = "spy"


class Block(nn.Module):
    """Two branches with parameters, dropout, sequence state, a signal read, and one published."""

    branches = ("attention", "mixer")

    def __init__(self, spy: Spy, dropout: float = 0.0) -> None:
        super().__init__()
        self.spy = (spy,)
        self.maps = nn.ModuleDict({name: nn.Linear(WIDTH, WIDTH).double() for name in self.branches})
        self.dropout = nn.Dropout(dropout)

    def branch(self, name: str, x: Tensor, ctx: Context, state: State | None) -> tuple[Tensor, State]:
        y = torch.tanh(self.maps[name](x)) * 0.5
        if name == "mixer":  # reads what the attention published, here or in the block before
            return self.dropout(y * (1 + ctx.signals["calcium"]) + ctx.signals["stress"]), {}
        before = torch.zeros_like(x[:, 0]) if state is None else state["inner"]["trace"]
        trace = torch.stack([before + x[:, : t + 1].sum(1) for t in range(x.shape[1])], dim=1)
        ctx.signals["calcium"] = ctx.signals["calcium"] * 0.5 + torch.sigmoid(trace.mean(-1, keepdim=True))
        self.spy[0].observe("x", x.sum(), x.numel())
        ctx.report("spy", "x", x.sum(), 0)
        return self.dropout(y + 0.1 * trace), {"inner": {"trace": trace[:, -1]}, "count": torch.ones(len(x)).long()}


class Case:
    """Some blocks with everything that a gradient may flow to."""

    def __init__(self, depth: int = 3, dropout: float = 0.0, continued: bool = True) -> None:
        torch.manual_seed(0)
        self.spy = Spy()
        self.layers = nn.ModuleList(Block(self.spy, dropout) for _ in range(depth))
        self.streams = [torch.randn(2, 5, WIDTH, dtype=torch.float64, requires_grad=True) for _ in range(2)]
        self.signals = {
            "calcium": torch.randn(2, 5, 1, dtype=torch.float64, requires_grad=True),
            "stress": torch.randn(1, dtype=torch.float64, requires_grad=True),
            "unused": torch.randn(1, dtype=torch.float64, requires_grad=True),
        }
        self.state: State | None = None
        if continued:
            traces = [torch.randn(2, WIDTH, dtype=torch.float64, requires_grad=True) for _ in range(depth)]
            self.state = {
                str(i): {"attention": {"inner": {"trace": trace}, "count": torch.ones(2).long()}}
                for i, trace in enumerate(traces)
            }

    def inputs(self) -> list[Tensor]:
        leaves = [leaf for leaf in _leaves(self.state or {}) if leaf.is_floating_point()]
        return [*self.streams, *self.signals.values(), *leaves, *self.layers.parameters()]

    def passage(self, vitals: Vitals | None = None) -> Passage:
        ctx = Context(torch.arange(5)[None], signals=dict(self.signals), vitals=vitals)
        layers = [(str(i), layer) for i, layer in enumerate(self.layers)]
        return Passage(layers, ctx, self.state, [self.spy], torch.float64)

    def run(
        self, how: Callable[..., Any], vitals: Vitals | None = None
    ) -> tuple[list[Tensor], State, dict[str, Tensor]]:
        passage = self.passage(vitals)
        ctx = passage.ctx
        streams, state = how(passage, list(self.streams), list(self.layers.parameters()))
        return streams, state, ctx.signals


def ordinary(passage: Passage, streams: list[Tensor], parameters: list[Tensor]) -> tuple[list[Tensor], State]:
    """The same passage with a graph that stores everything."""
    streams = passage.forward(streams)
    return streams, _by_block(passage.steps, [leaf for step in passage.steps for leaf in _leaves(step.after)])


def gradients(case: Case, how: Callable[..., Any], of: str) -> list[Tensor | None]:
    torch.manual_seed(5)
    streams, state, signals = case.run(how)
    outputs = {
        "streams": streams,
        "one stream": streams[:1],
        "state": [leaf for leaf in _leaves(state) if leaf.is_floating_point()],
        "signals": [signals["calcium"]],
    }
    outputs["everything"] = [*outputs["streams"], *outputs["state"], *outputs["signals"]]
    weights = torch.Generator().manual_seed(7)
    loss = sum((o * torch.randn(o.shape, generator=weights, dtype=o.dtype)).sin().sum() for o in outputs[of])
    return list(torch.autograd.grad(loss, case.inputs(), allow_unused=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("of", ["streams", "one stream", "state", "signals", "everything"])
@pytest.mark.parametrize("continued", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_all_gradients_equal_those_of_a_stored_graph(of: str, continued: bool, dropout: float) -> None:
    case = Case(continued=continued, dropout=dropout)
    want, got = gradients(case, ordinary, of), gradients(case, reversible, of)
    assert sum(grad is not None for grad in want) > 5
    for a, b in zip(got, want, strict=True):
        if b is None:
            assert a is None or not a.any()
        else:
            assert a is not None and torch.allclose(a, b, atol=1e-12, rtol=1e-10)


def test_values_state_and_signals_are_the_same_with_and_without_a_graph() -> None:
    case = Case()
    with torch.no_grad():
        streams, state, signals = case.run(reversible)
    other_streams, other_state, other_signals = case.run(reversible)
    for a, b in zip([*streams, *_leaves(state)], [*other_streams, *_leaves(other_state)], strict=True):
        assert torch.equal(a, b)
    assert list(state) == list(other_state) and state["1"].keys() == other_state["1"].keys()
    assert torch.equal(signals["calcium"], other_signals["calcium"]) and other_signals["calcium"].requires_grad


def test_the_inverse_finds_the_start() -> None:
    case = Case(dropout=0.3)
    passage = case.passage()
    with torch.no_grad():
        after = passage.forward([stream.detach() for stream in case.streams])
    assert not torch.allclose(after[0], case.streams[0])
    for found, stream in zip(passage.inverse(list(after)), case.streams, strict=True):
        assert torch.allclose(found, stream, atol=1e-14, rtol=0)


def test_nothing_is_observed_reported_or_drawn_twice() -> None:
    case = Case(depth=3, dropout=0.5)
    vitals = Vitals()
    torch.manual_seed(1)
    streams, _, _ = case.run(reversible, vitals)
    observed, random = dict(case.spy._observed), torch.get_rng_state()
    reports = len(vitals._values["spy", "x"][0])
    streams[0].sum().backward()
    assert case.spy._observed == observed and observed["x"][1] == 3 * 2 * 5 * WIDTH
    assert torch.equal(torch.get_rng_state(), random)
    assert reports == len(vitals._values["spy", "x"][0]) == 3


def saved_bytes(depth: int, how: Callable[..., Any]) -> int:
    """Bytes that autograd keeps for the backward pass, parameters not counted."""
    case = Case(depth, continued=False)
    own = {p.untyped_storage().data_ptr() for p in case.inputs()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        streams, _, _ = case.run(how)
    del streams
    return sum(kept.values())


def test_what_is_saved_does_not_grow_with_depth() -> None:
    two_streams = 2 * 2 * 5 * WIDTH * 8
    assert [saved_bytes(depth, reversible) for depth in (1, 4, 16)] == [two_streams] * 3
    ordinary_bytes = [saved_bytes(depth, ordinary) for depth in (1, 4, 16)]
    assert ordinary_bytes[2] > 10 * ordinary_bytes[0] > 10 * two_streams


def test_the_graph_is_freed_without_the_garbage_collector() -> None:
    case = Case()
    gc.collect()
    gc.disable()
    try:
        passage = case.passage()
        alive = weakref.ref(passage)
        streams, state = reversible(passage, list(case.streams), list(case.layers.parameters()))
        del passage
        assert alive() is not None
        del streams, state
        assert alive() is None
    finally:
        gc.enable()


def test_a_change_in_place_between_the_passes_is_noticed() -> None:
    case = Case()
    streams, _, _ = case.run(reversible)
    with torch.no_grad():
        next(case.layers.parameters()).add_(1)
    with pytest.raises(RuntimeError, match="changed in place"):
        streams[0].sum().backward()


def test_hooks_on_saved_tensors_do_no_harm() -> None:
    """Such as those that move what is saved to the host."""
    case = Case()
    want = gradients(case, ordinary, "everything")
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.clone(), lambda tensor: tensor):
        got = gradients(case, reversible, "everything")
    for a, b in zip(got, want, strict=True):
        assert b is None or (a is not None and torch.allclose(a, b, atol=1e-12, rtol=1e-10))


def test_frozen_parameters_get_no_gradient_and_the_others_theirs() -> None:
    case = Case()
    for parameter in case.layers[1].parameters():
        parameter.requires_grad_(False)
    streams, _, _ = case.run(reversible)
    streams[0].sum().backward()
    assert all(p.grad is None for p in case.layers[1].parameters())
    assert all(p.grad is not None for p in case.layers[0].maps["attention"].parameters())  # type: ignore[union-attr]


def test_a_second_derivative_is_refused() -> None:
    case = Case()
    streams, _, _ = case.run(reversible)
    (grad,) = torch.autograd.grad(streams[0].sin().sum(), case.streams[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("inside", [False, True])
def test_autocast_is_as_in_the_first_pass_wherever_the_second_runs(inside: bool) -> None:
    case = Case()
    case.layers.float()
    case.state = None
    for values in (case.signals, {str(i): s for i, s in enumerate(case.streams)}):
        for tensor in values.values():
            tensor.data = tensor.data.float()
    results = []
    for how in (ordinary, reversible):
        case.layers.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            passage = case.passage()
            passage.dtype = torch.float32
            streams, _ = how(passage, list(case.streams), list(case.layers.parameters()))
            loss = (streams[0] + streams[1]).square().mean()
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
        results.append([p.grad.clone() for p in case.layers.parameters() if p.grad is not None])
    assert len(results[0]) == len(results[1]) == len(list(case.layers.parameters()))
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, atol=2e-3, rtol=2e-2)
