"""The spiking body: its sizes, its equations, step form and sequence form."""

import pytest
import torch

import bouton
from bouton.errors import ConfigError, SocketError
from bouton.mechanisms.vitals import Vitals
from bouton.models.build import build
from bouton.models.neurons import RAW_BETA
from bouton.testing.arms import leaves, sample_starts, sample_tokens

ALL = {"diversity": {}, "environment": {}, "firing_rate": {}, "homeostasis": {}}
SMALL = {"body": "spiking", "vocab_size": 29, "num_layers": 2, "hidden_size": 24, "code_size": 16}


def small(mechanism=None, **model):
    return build({"model": {**SMALL, **model}, "mechanism": mechanism or {}, "seed": 0}).double()


@pytest.mark.parametrize(
    ("version", "overrides", "expected"),
    [
        ("v1", ["model.vocab_size=65"], 970_561),
        ("v2", [], 2_892_032),
        ("v3", [], 6_048_512),
        ("v4", [], 6_048_512),
    ],
)
def test_sizes_to_the_unit(version, overrides, expected):
    cfg = bouton.compose(f"experiment=real_sam/{version}", *overrides)
    assert build(cfg, device="meta").num_parameters() == expected


def test_three_bodies_of_equal_size():
    sizes = []
    for body in ("transformer", "gru", "spiking"):
        cfg = bouton.compose("experiment=real_sam/study", f"model=matched/{body}")
        sizes.append(build(cfg, device="meta").num_parameters())
    assert max(sizes) < 1.006 * min(sizes)


@pytest.mark.parametrize("residual", ["gated", "plain", "none"])
@pytest.mark.parametrize("mechanism", [{}, ALL], ids=["alone", "with all"])
def test_step_form_equals_sequence_form(residual, mechanism):
    model = small(mechanism, residual=residual).eval()
    tokens, starts = sample_tokens(), sample_starts()
    whole, final = model(tokens, starts=starts)
    state, parts = None, []
    for t in range(tokens.shape[1]):
        logits, state = model(tokens[:, t : t + 1], state, starts=starts[:, t : t + 1])
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-12, atol=1e-12)
    assert set(leaves(state)) == set(leaves(final))
    for path, leaf in leaves(state).items():
        # A matrix product of one row may round the potentials otherwise; the spikes are the same.
        tolerance = 1e-12 if path.endswith("/u") else 0
        torch.testing.assert_close(leaf, leaves(final)[path], rtol=0, atol=tolerance)


def test_its_state_does_not_grow():
    model = small()
    sizes = {sum(leaf.numel() for leaf in leaves(model(sample_tokens(length=n))[1]).values()) for n in (1, 7, 40)}
    assert len(sizes) == 1


def test_documents_and_rows_are_isolated():
    model = small(ALL).eval()
    tokens = sample_tokens()
    starts = torch.zeros_like(tokens, dtype=torch.bool)
    starts[:, 8] = True
    together, alone = model(tokens, starts=starts)[0], model(tokens[:, 8:])[0]
    torch.testing.assert_close(together[:, 8:], alone, rtol=1e-12, atol=1e-12)
    changed = tokens.clone()
    changed[0] = (changed[0] + 3) % 29
    assert torch.equal(model(changed)[0][1], model(tokens)[0][1])
    changed = tokens.clone()
    changed[:, 12:] = (changed[:, 12:] + 3) % 29
    assert torch.equal(model(changed)[0][:, :12], model(tokens)[0][:, :12])


def test_a_block_is_its_equations():
    """One block in plain arithmetic, token by token."""
    model = small(num_layers=1)
    tokens = sample_tokens(batch=1, length=9)
    block, e = model.layers[0], model.embedding.weight
    n = block.neurons
    k = (e[tokens[0]] > 0).double()
    h = k @ model.projection.weight.T + model.projection.bias
    u = s = torch.zeros(24, dtype=torch.float64)
    logits = []
    for t in range(9):
        x = torch.nn.functional.layer_norm(h[t], (24,), block.norm.weight, block.norm.bias)
        current = n.input.linear(x) + n.recurrent.weight @ s + n.recurrent.bias
        u = torch.sigmoid(n.leak.raw) * u + current - s
        s = (u > 1).double()
        out = h[t] + torch.sigmoid(n.gate(h[t])) * s
        logits.append(model.readout(torch.nn.functional.layer_norm(out, (24,))) @ e.T)
    torch.testing.assert_close(model(tokens)[0][0], torch.stack(logits), rtol=1e-12, atol=1e-12)


def test_how_it_starts():
    model = build(bouton.compose("model=spiking", "model.vocab_size=512", "data=stdlib"))
    beta = torch.sigmoid(torch.cat([layer.neurons.leak.raw for layer in model.layers]))
    low, high = torch.sigmoid(torch.tensor(RAW_BETA))
    assert low <= beta.min() < 0.74 and 0.94 < beta.max() <= high
    # P (k - 1/2): the projection of a code and of its complement are opposite.
    code = (torch.rand(5, 256) > 0.5).float()
    torch.testing.assert_close(model.projection(code), -model.projection(1 - code), rtol=0, atol=1e-5)
    vitals = Vitals()
    tokens = torch.randint(512, (8, 128), generator=torch.Generator().manual_seed(0))
    logits, _ = model(tokens, vitals=vitals)
    values = vitals.mean()
    assert 0.02 < values["spiking/rate"] < 0.3 and values["spiking/dead_fraction"] < 0.2
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert loss < 1.2 * torch.log(torch.tensor(512.0))


def test_gradients_reach_every_parameter():
    for residual in ("gated", "plain", "none"):
        model = small(residual=residual)
        model(sample_tokens())[0].square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_what_refines_lif_refines_this_body_and_the_rest_is_refused():
    assert set(small(ALL).mechanisms) == set(ALL)
    with pytest.raises(SocketError, match="mixer"):
        small({"lif": {}})
    with pytest.raises(SocketError, match="attention_core"):
        small({"presyn": {}})
    with pytest.raises(ConfigError, match="residual"):
        small(residual="gate")
    with pytest.raises(ValueError, match="from 0 to 28"):
        small()(torch.tensor([[29]]))
