"""bdnf: the trace, and that it raises the learning rate of hebb."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from bouton.errors import SocketError
from bouton.mechanisms.bdnf import Bdnf, BdnfParams, Neurotrophin
from bouton.models import Transformer, TransformerConfig
from bouton.models.build import build
from bouton.models.context import Context

MODEL = {"vocab_size": 31, "num_layers": 1, "hidden_size": 16, "num_heads": 2}


def logits(hebb: dict[str, Any], bdnf: dict[str, Any] | None) -> Tensor:
    mechanism = {"hebb": hebb} if bdnf is None else {"hebb": hebb, "bdnf": bdnf}
    model = build({"model": MODEL, "mechanism": mechanism, "seed": 0}).double()
    read = torch.randint(0, 31, (2, 20), generator=torch.Generator().manual_seed(1))
    result: Tensor = model(read)[0]
    return result


def test_the_gain_is_that_of_the_equation() -> None:
    part = Neurotrophin(BdnfParams(gamma=2.0, tau=7.0, max=0.9), layer=0)
    v = torch.randn(2, 3, 15, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    starts = torch.zeros(2, 15, dtype=torch.bool)
    starts[1, 6] = True
    gain, gate, state = part(v, Context(torch.arange(15)[None], starts), None)
    assert gate is None
    rho = math.exp(-1 / 7)
    for row in range(2):
        trace = torch.zeros(3, dtype=torch.float64)
        for t in range(15):
            if starts[row, t]:
                trace = torch.zeros_like(trace)
            torch.testing.assert_close(gain[row, :, t], 1 + 2 * trace)
            trace = rho * trace + (1 - rho) * v[row, :, t].abs().mean(-1).clamp(max=0.9)
        torch.testing.assert_close(state["bdnf"][row], trace)


def test_without_gamma_hebb_is_as_it_was() -> None:
    assert torch.equal(logits({}, {"gamma": 0.0}), logits({}, None))
    assert not torch.equal(logits({}, {"gamma": 1.0}), logits({}, None))


def test_the_delta_rule_clamps_the_rate_after_the_gain() -> None:
    """Rates that the gain takes beyond 1 are 1: the same model, whatever the gain."""
    hebb = {"eta": 1.0, "learnable": False}
    assert torch.equal(logits(hebb, {"gamma": 3.0}), logits(hebb, None))


def test_it_says_that_it_needs_hebb() -> None:
    body = Transformer(TransformerConfig(**MODEL))
    with pytest.raises(SocketError, match="'bdnf' refines 'hebb', which is not there: use mechanism=bdnf\\+hebb"):
        body.plug([Bdnf()])
