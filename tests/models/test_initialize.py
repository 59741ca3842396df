from __future__ import annotations

import pytest
import torch
from torch import nn

from bouton.models import Transformer, TransformerConfig, initialize

CONFIG = TransformerConfig(vocab_size=31, num_layers=2, hidden_size=32, num_heads=2)


def test_seed_decides_and_nothing_else():
    torch.manual_seed(1)
    a = initialize(Transformer(CONFIG), 3).state_dict()
    torch.manual_seed(2)
    torch.rand(10)
    b = initialize(Transformer(CONFIG), 3).state_dict()
    c = initialize(Transformer(CONFIG), 4).state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["embedding.weight"], c["embedding.weight"])


def test_equal_names_get_equal_values_in_other_models():
    deep = initialize(Transformer(TransformerConfig(vocab_size=31, num_layers=3, hidden_size=32, num_heads=2)), 0)
    flat = initialize(Transformer(CONFIG), 0).state_dict()
    name = "layers.1.attention.query.weight"
    assert torch.equal(deep.state_dict()[name], flat[name])


def test_weights_have_the_stated_spread():
    model = initialize(Transformer(TransformerConfig(vocab_size=512, num_layers=2, hidden_size=256, num_heads=4)), 0)
    assert model.layers[0].attention.query.weight.std().item() == pytest.approx(1 / 16, rel=0.02)
    assert model.layers[0].attention.output.linear.weight.std().item() == pytest.approx(1 / 32, rel=0.02)
    assert model.embedding.weight.std().item() == pytest.approx(0.02, rel=0.02)


def test_a_module_that_does_not_say_how_is_named():
    class Silent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2))

    with pytest.raises(TypeError, match="Silent"):
        initialize(nn.Sequential(Silent()), 0)
