"""camkii: calcium in units of typical activity, the latch of a head over tokens, and the gate on consolidation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bouton.errors import ConfigError
from bouton.mechanisms.camkii import UNSEEN, Camkii, Latch
from bouton.models.body import Body
from bouton.models.build import build
from bouton.models.context import Context

MODEL = {"vocab_size": 31, "num_layers": 2, "hidden_size": 16, "num_heads": 2}


def model_with(hebb: dict[str, Any] | None = None, **values: Any) -> Body:
    return build({"model": MODEL, "mechanism": {"hebb": hebb or {}, "camkii": values}, "seed": 0}).double()


def tokens(length: int = 20, seed: int = 1) -> Tensor:
    return torch.randint(0, 31, (2, length), generator=torch.Generator().manual_seed(seed))


def latches(body: Body) -> list[Latch]:
    return [module for module in body.modules() if isinstance(module, Latch)]


def mechanism(body: Body) -> Camkii:
    found = body.mechanisms["camkii"]
    assert isinstance(found, Camkii)
    return found


def values(levels: Tensor) -> Tensor:
    """(T,) levels of calcium -> v (1, 4, T, 3) of a model that has seen nothing yet."""
    signs = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)
    return (UNSEEN * levels.double()).view(1, 1, -1, 1) * signs.expand(1, 4, len(levels), 3)


def test_a_pulse_opens_the_gate_and_low_activity_closes_it() -> None:
    part = latches(model_with().eval())[0]
    levels = torch.cat(
        [torch.full((n,), level) for level, n in ((1.0, 50), (2.0, 6), (1.0, 200), (0.1, 40), (1.0, 50))]
    )
    gain, gate, _ = part(values(levels), Context(torch.arange(len(levels))[None]), None)
    assert gain is None
    before, _, after, _, erased = gate[0].split([50, 6, 200, 40, 50], dim=-1)
    assert before.max() < 0.05 and erased.max() < 0.05
    assert after.min() > 0.9


def test_a_document_begins_at_rest() -> None:
    part = latches(model_with().eval())[0]
    levels = torch.cat((torch.full((10,), 2.0), torch.ones(10)))
    starts = torch.zeros(1, 20, dtype=torch.bool)
    starts[0, 10] = True
    _, gate, _ = part(values(levels), Context(torch.arange(20)[None], starts), None)
    assert gate[0, :, 9].min() > 0.9
    assert gate[0, :, 10:].max() < 0.05


def test_typical_activity_is_averaged_over_training_steps_and_fixed_in_evaluation() -> None:
    body = model_with()
    seen: list[Tensor] = []
    latches(body)[1].register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].abs().mean((0, 2, 3)).detach()))
    for step in range(3):
        body(tokens(seed=step))
        body.commit_observations(lambda sums: sums)
        torch.testing.assert_close(mechanism(body).activity[1], torch.stack(seen).mean(0), rtol=1e-9, atol=0)
    before = mechanism(body).activity.clone()
    body.eval()(tokens(seed=7))
    body.commit_observations(lambda sums: sums)
    assert torch.equal(mechanism(body).activity, before)


def test_a_silent_head_stays_finite() -> None:
    body = model_with()
    mechanism(body).update_organism({"activity0": torch.zeros(4), "activity1": torch.zeros(4)})
    logits, _ = body(tokens())
    logits.sum().backward()
    assert logits.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in body.parameters())


def test_a_closed_gate_consolidates_nothing() -> None:
    """At rest the gate is nearly shut, so S is much smaller than without it; F does not change."""
    gated = model_with(beta=20.0)
    mechanism(gated).activity.fill_(1e6)  # every activity is low
    plain = build({"model": MODEL, "mechanism": {"hebb": {}}, "seed": 0}).double()
    held = [body(tokens())[1]["layers"]["0"]["attention"]["output"]["hebb"] for body in (gated, plain)]
    torch.testing.assert_close(held[0]["fast"], held[1]["fast"])
    assert held[0]["slow"].norm() < 1e-6 * held[1]["slow"].norm()


def test_bad_parameters_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"theta_ltd = 2 is above theta_ltp = 1\.5"):
        model_with(theta_ltd=2.0)
    with pytest.raises(ConfigError, match=r"mechanism\.hebb\.eta_s = 0 consolidates nothing that could be gated"):
        model_with({"eta_s": 0.0})
