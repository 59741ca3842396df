"""The GRU body: torch's own GRU with explicit state and documents."""

import torch

from bouton.models.build import build
from bouton.testing.arms import leaves, sample_starts, sample_tokens

MODEL = {"body": "gru", "vocab_size": 29, "num_layers": 2, "hidden_size": 16}


def small():
    return build({"model": MODEL, "mechanism": {}, "seed": 0}).double()


def test_any_split_is_equal():
    model = small()
    tokens = sample_tokens()
    for starts in (None, sample_starts()):
        whole, final = model(tokens, starts=starts)
        for sizes in ([1] * 19, [7, 12]):
            state, parts, at = None, [], 0
            for size in sizes:
                piece = slice(at, at + size)
                logits, state = model(tokens[:, piece], state, starts=None if starts is None else starts[:, piece])
                parts.append(logits)
                at += size
            torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-12, atol=1e-12)
            for path, leaf in leaves(state).items():
                torch.testing.assert_close(leaf, leaves(final)[path], rtol=1e-12, atol=1e-12)


def test_documents_are_isolated():
    model = small()
    tokens = sample_tokens()
    starts = torch.zeros_like(tokens, dtype=torch.bool)
    starts[0, 8] = starts[1, 3] = True
    together = model(tokens, starts=starts)[0]
    for row, border in ((0, 8), (1, 3)):
        alone = model(tokens[row : row + 1, border:])[0]
        torch.testing.assert_close(together[row : row + 1, border:], alone, rtol=1e-12, atol=1e-12)


def test_flops_and_parameters_are_those_of_its_matrices():
    model = small()
    layer = 3 * 16 * (16 + 16)
    assert model.flops_per_token() == 2 * (2 * layer + 16 * 29)
    assert model.num_parameters() == 29 * 16 + 2 * (layer + 6 * 16 + 16) + 16


def test_gradients_reach_every_parameter():
    model = small()
    model(sample_tokens(), starts=sample_starts())[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
