"""reversible: the streams against their formula, all gradients with other mechanisms, memory, refusals and vitals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bouton.errors import ConfigError, SocketError
from bouton.mechanisms import Vitals
from bouton.mechanisms import reversible as module
from bouton.mechanisms.reversible import CoupledStack
from bouton.models.body import Body
from bouton.models.build import build
from bouton.models.context import Context
from bouton.models.reversible import Passage, _by_block, _leaves
from bouton.models.sockets import State

MODEL = {"vocab_size": 11, "num_layers": 3, "hidden_size": 16, "num_heads": 4, "num_kv_heads": 2, "max_seq_len": 64}


def model_with(mechanism: dict[str, dict[str, Any]], **model: Any) -> Body:
    return build({"model": {**MODEL, **model}, "mechanism": mechanism, "seed": 3}).double()


def tokens(length: int = 12) -> Tensor:
    return torch.randint(11, (2, length), generator=torch.Generator().manual_seed(0))


def stored(passage: Passage, streams: list[Tensor], parameters: list[Tensor]) -> tuple[list[Tensor], State]:
    """The same passage by ordinary autograd."""
    streams = passage.forward(streams)
    return streams, _by_block(passage.steps, [leaf for step in passage.steps for leaf in _leaves(step.after)])


def stack_output(model: Body, x: Tensor) -> Tensor:
    out: Tensor = model.stack(x, model.layers, Context(torch.arange(x.shape[1])[None]), None)[0]  # type: ignore[operator]
    return out


@pytest.mark.parametrize("start", ["copy", "zero"])
@pytest.mark.parametrize("blocks", [None, 2])
def test_two_streams_add_to_each_other_in_the_last_blocks(start: str, blocks: int | None) -> None:
    model = model_with({"reversible": {"start": start, "blocks": blocks}})
    x = torch.randn(2, 5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ctx = Context(torch.arange(5)[None])
    y, layers = x, list(model.layers)  # type: ignore[arg-type]
    while len(layers) > (blocks or 3):
        y, _ = layers.pop(0)(y, ctx, None)
    a, b = (y if start == "copy" else torch.zeros_like(y)), y
    for layer in layers:
        a = a + layer.attention(layer.attention_norm(b), ctx, None)[0]
        b = b + layer.mixer(layer.mixer_norm(a), ctx, None)[0]
    expected = (a + b) / (2 if start == "copy" else 1)
    assert torch.allclose(stack_output(model, x), expected, atol=1e-13, rtol=0)


MIXTURES = ["", "presyn", "hebb", "presyn+hebb+septin", "simplicial+dendrite", "oscillate+sparse"]


@pytest.mark.parametrize("others", MIXTURES)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_all_gradients_are_those_of_stored_activations(others: str, dropout: float, monkeypatch: Any) -> None:
    """Through the logits and the returned state, over two calls, so that they flow into a given state, too."""
    names = [name for name in others.split("+") if name]
    learnable = {"presyn": {"learnable": True}}
    model = model_with({"reversible": {}, **{n: learnable.get(n, {}) for n in names}}, dropout=dropout, window=7)
    starts = torch.zeros(2, 12, dtype=torch.bool)
    starts[0, 3] = starts[1, 9] = True
    found = []
    for inversion in (True, False):
        if not inversion:
            monkeypatch.setattr(module, "reversible", stored)
        model.zero_grad()
        torch.manual_seed(0)
        first, state = model(tokens()[:, :7], starts=starts[:, :7])
        second, state = model(tokens()[:, 7:], state, starts=starts[:, 7:])
        weights = torch.Generator().manual_seed(2)
        outputs = [first, second, *(leaf for leaf in _leaves(state) if leaf.is_floating_point())]
        loss = sum((o * torch.randn(o.shape, generator=weights).to(o)).sum() for o in outputs)
        loss.backward()  # type: ignore[union-attr]
        found.append({name: p.grad for name, p in model.named_parameters()})
    for name, grad in found[1].items():
        scale = grad.abs().max().clamp_min(1)
        assert torch.allclose(found[0][name], grad, atol=float(1e-10 * scale), rtol=0), name


def peak_bytes(depth: int, mechanism: dict[str, dict[str, Any]], width: int = 32) -> int:
    """The most memory that one forward and backward pass holds at a time, beyond what there was and the gradients."""
    model = model_with(mechanism, num_layers=depth, hidden_size=width)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    batch = torch.randint(11, (4, 64), generator=torch.Generator().manual_seed(0))

    def step() -> None:
        logits, _ = model(batch)
        del _
        logits.square().mean().backward()

    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    events = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    memory = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held = peak = 0
    for _, change in memory:
        held += change
        peak = max(peak, held)
    return peak


def test_activations_take_the_same_memory_at_any_depth() -> None:
    """What still grows are the gradients of the weights, once more until autograd has added them to the others."""
    grown = {}
    for label, mechanism in (("stored", {}), ("recomputed", {"reversible": {}})):
        grown[label] = (peak_bytes(10, mechanism) - peak_bytes(2, mechanism)) / 8
    block = model_with({}, num_layers=1, hidden_size=32).layers[0]  # type: ignore[index]
    weights = sum(p.numel() * p.element_size() for p in block.parameters())  # type: ignore[union-attr]
    assert grown["recomputed"] < 1.05 * weights < 0.1 * grown["stored"], (grown, weights)


def test_a_state_costs_nothing_of_its_own() -> None:
    _, state = model_with({"reversible": {}})(tokens())
    _, plain = model_with({})(tokens())
    assert [leaf.shape for leaf in _leaves(state)] == [leaf.shape for leaf in _leaves(plain)]


def test_the_error_of_the_inversion_is_reported_and_is_rounding() -> None:
    errors = {}
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        vitals = Vitals()
        model = model_with({"reversible": {}}, num_layers=6).to(dtype)
        model(tokens(), vitals=vitals)
        errors[dtype] = vitals.mean()["reversible/reconstruction_error"].item()
    assert errors[torch.float64] < 1e-14
    assert 1e-9 < errors[torch.float32] < 1e-5
    assert errors[torch.bfloat16] < 1e-5  # the streams are float32


def test_the_vital_tells_a_block_that_cannot_be_computed_again() -> None:
    class Moody(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x * self.calls

    vitals = Vitals()
    model = model_with({"reversible": {}})
    model.layers[1].dropout = Moody()  # type: ignore[index, union-attr]
    model(tokens(), vitals=vitals)
    assert vitals.mean()["reversible/reconstruction_error"].item() > 1e-3


@pytest.mark.parametrize("grad", [True, False])
def test_others_report_their_vitals_once(grad: bool) -> None:
    vitals = Vitals()
    with torch.set_grad_enabled(grad):
        model_with({"reversible": {}, "hebb": {}})(tokens(), vitals=vitals)
    assert [len(values) for values in vitals._values["hebb", "contribution"].values()] == [1, 1, 1]


def test_asking_for_vitals_with_dropout_leaves_the_generator_where_it_was() -> None:
    model = model_with({"reversible": {}}, dropout=0.5)
    results = []
    for vitals in (None, Vitals()):
        torch.manual_seed(0)
        results.append((model(tokens(), vitals=vitals)[0], torch.rand(1)))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("blocks", [None, 0])
def test_a_loss_put_aside_inside_the_blocks_is_refused(blocks: int | None, monkeypatch: Any) -> None:
    model = model_with({"reversible": {"blocks": blocks}, "hebb": {}})
    seen: list[Tensor] = []
    part = model.layers[0].mixer  # type: ignore[index, union-attr]
    part.register_forward_hook(lambda _module, _args, output: seen.append(output[0].square().mean()))
    monkeypatch.setattr(model.mechanisms["hebb"], "auxiliary_loss", lambda: seen[-1])
    model(tokens())
    if blocks == 0:
        assert model.auxiliary_loss() is seen[-1]
        return
    with pytest.raises(
        SocketError, match="'hebb' has a loss of its own that gets no gradient with 'reversible'"
    ) as caught:
        model.auxiliary_loss()
    assert "\n" not in str(caught.value)
    with torch.no_grad():
        assert model.auxiliary_loss() is seen[-1]


def test_a_loss_from_outside_the_blocks_is_added(monkeypatch: Any) -> None:
    model = model_with({"reversible": {}, "hebb": {}})
    loss = model.embedding.weight.square().sum()  # type: ignore[union-attr, operator]
    monkeypatch.setattr(model.mechanisms["hebb"], "auxiliary_loss", lambda: loss)
    model(tokens())
    assert model.auxiliary_loss() is loss


def test_no_blocks_is_the_plain_body_and_too_many_are_refused() -> None:
    off, plain = model_with({"reversible": {"blocks": 0}}), model_with({})
    assert not any(isinstance(part, CoupledStack) for part in off.modules())
    assert torch.equal(off(tokens())[0], plain(tokens())[0])
    with pytest.raises(ConfigError, match=r"blocks = 4 is more than model\.num_layers = 3"):
        model_with({"reversible": {"blocks": 4}})


def test_the_body_is_no_child_of_its_part() -> None:
    names = set(model_with({"reversible": {}}).state_dict())
    assert names == set(model_with({}).state_dict())


def test_a_compiled_body_computes_the_same() -> None:
    model = model_with({"reversible": {}})
    expected = model(tokens())[0]
    compiled = torch.compile(model, backend="eager")
    assert torch.allclose(compiled(tokens())[0], expected, atol=1e-12, rtol=0)
