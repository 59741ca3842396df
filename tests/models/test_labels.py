"""Bodies that label tokens: an output for each label, and the same whether tokens come at once or one by one."""

import pytest
import torch
from hydra import compose, initialize_config_dir

import bouton
from bouton.config import conf_dir
from bouton.evidence.grid.arms import expand
from bouton.models.build import build
from bouton.models.labels import TRACE_DECAY, SpikeLabels
from bouton.testing.arms import leaves, sample_starts, sample_tokens

BODIES = {
    "gru": {"num_layers": 2, "hidden_size": 16},
    "spiking": {"num_layers": 2, "hidden_size": 24, "code_size": 16},
    "spiking without residual": {"num_layers": 2, "hidden_size": 24, "code_size": 16, "residual": "none"},
    "transformer": {"num_layers": 2, "hidden_size": 16, "num_heads": 2, "max_seq_len": 32},
    "transformer with a head of its own": {
        "num_layers": 2, "hidden_size": 16, "num_heads": 2, "max_seq_len": 32, "tied_embeddings": False,
    },
}  # fmt: skip


def small(name, **model):
    config = {"body": name.split()[0], "vocab_size": 29, **BODIES[name], **model}
    return build({"model": config, "mechanism": {}, "seed": 0}).double()


@pytest.mark.parametrize("name", BODIES)
def test_step_form_equals_sequence_form(name):
    model = small(name, num_labels=5)
    tokens, starts = sample_tokens(), sample_starts()
    whole, final = model(tokens, starts=starts)
    assert whole.shape == (*tokens.shape, 5)
    state, parts = None, []
    for t in range(tokens.shape[1]):
        logits, state = model(tokens[:, t : t + 1], state, starts=starts[:, t : t + 1])
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-12, atol=1e-12)
    assert set(leaves(state)) == set(leaves(final))


@pytest.mark.parametrize("name", BODIES)
def test_every_parameter_has_a_gradient_and_flops_count_the_head(name):
    model = small(name, num_labels=5)
    model(sample_tokens())[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    wider = small(name, num_labels=6)
    inputs = 2 * model.hidden_size if name.startswith("spiking") else model.hidden_size
    assert wider.num_parameters() - model.num_parameters() == inputs + 1
    assert wider.flops_per_token(8) - model.flops_per_token(8) == 2 * inputs


def test_the_trace_of_the_spikes_is_a_low_pass_filter():
    head = SpikeLabels(2, 2).double()
    with torch.no_grad():
        head.linear.weight.copy_(torch.tensor([[0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]]))
        head.linear.bias.zero_()
    spikes = torch.tensor([[[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]]], dtype=torch.float64)
    a = TRACE_DECAY
    expected = (1 - a) * torch.tensor([[[1, 0], [a, 0], [a**2 + 1, 1]]], dtype=torch.float64)
    ctx = type("Context", (), {"starts": None})()
    logits, state = head(torch.zeros_like(spikes), spikes, ctx, None)
    torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state["trace"], expected[:, -1], rtol=1e-12, atol=1e-12)


def test_the_data_say_how_many_labels_there_are():
    model = {"body": "gru", "vocab_size": 29, **BODIES["gru"]}
    config = {"model": model, "mechanism": {}, "data": {"name": "pii", "types": ["P", "D"]}}
    assert build(config).num_labels == 5
    assert build({**config, "data": {"name": "text"}}).num_labels is None


def test_the_bodies_of_the_study_are_of_equal_size():
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        found = compose("train", ["experiment=real_sam/pii_study"], return_hydra_config=True).hydra
    arms = [planned.words for planned in expand(found.sweeper.arms, lambda names: None)[0]]
    sizes = []
    for words in arms:
        cfg = bouton.compose("experiment=real_sam/pii_study", "model.vocab_size=1024", *words)
        sizes.append(build(cfg, device="meta").num_parameters())
    assert len(sizes) == 4 and max(sizes) < 1.006 * min(sizes)
