"""hebb: what is particular to it. Causality, decoding, resets and the rest are in the contract suite."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bouton.errors import ConfigError, SocketError
from bouton.mechanisms import Vitals
from bouton.mechanisms.hebb import SITES, FastWeights, Hebb, HebbParams
from bouton.models import Transformer, TransformerConfig, initialize
from bouton.models.context import Context

CONFIG = TransformerConfig(vocab_size=31, num_layers=2, hidden_size=16, num_heads=2, window=4)


def make_body(**values: Any) -> Transformer:
    body = Transformer(CONFIG)
    body.plug([Hebb(HebbParams(**values))])
    initialize(body, seed=0)
    return body.double()


def make_tokens(length: int = 20) -> torch.Tensor:
    return torch.randint(0, 31, (2, length), generator=torch.Generator().manual_seed(1))


def parts(body: Transformer) -> list[FastWeights]:
    return [module for module in body.modules() if isinstance(module, FastWeights)]


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("rule", ["hebb", "oja", "delta"])
def test_decode_equals_parallel_at_every_site(rule: str, site: str) -> None:
    body, tokens = make_body(rule=rule, site=site), make_tokens()
    starts = torch.zeros(2, 20, dtype=torch.bool)
    starts[0, 7] = True
    whole, final = body(tokens, starts=starts)
    state, logits = None, []
    for t in range(20):
        step, state = body(tokens[:, t : t + 1], state, starts=starts[:, t : t + 1])
        logits.append(step)
    torch.testing.assert_close(torch.cat(logits, dim=1), whole, rtol=1e-9, atol=1e-10)
    leaves, spec = torch.utils._pytree.tree_flatten(final)
    others, other_spec = torch.utils._pytree.tree_flatten(state)
    assert spec == other_spec
    for a, b in zip(leaves, others, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_remembers_beyond_the_attention_window() -> None:
    """The plain body cannot tell what lay before its window; with fast weights the last logits depend on it."""
    tokens = make_tokens()
    other = tokens.clone()
    other[:, 0] = (tokens[:, 0] + 1) % 31
    plain = make_body(scale=0)
    assert torch.equal(plain(tokens)[0][:, -1], plain(other)[0][:, -1])
    body = make_body(tau_fast=50.0)
    assert (body(tokens)[0][:, -1] - body(other)[0][:, -1]).abs().max() > 1e-6


def test_zero_scale_is_the_plain_body() -> None:
    plain = Transformer(CONFIG)
    initialize(plain, seed=0)
    body = make_body(scale=0)
    assert not parts(body)
    assert torch.equal(plain.double()(make_tokens())[0], body(make_tokens())[0])


def test_projections_start_orthonormal_and_shared_means_one() -> None:
    part = parts(make_body(projection="shared", rank=4, heads=4))[0]
    assert part.query is None
    rows = part.key.weight
    torch.testing.assert_close(rows @ rows.T, torch.eye(16, dtype=torch.float64), atol=1e-6, rtol=0)
    part = parts(make_body(projection="separate", rank=8, heads=4))[0]  # more rows than inputs: within each head
    assert part.query is not None
    for rows in (*part.key.weight.view(4, 8, 16), *part.query.weight.view(4, 8, 16)):
        torch.testing.assert_close(rows @ rows.T, torch.eye(8, dtype=torch.float64), atol=1e-6, rtol=0)


@pytest.mark.parametrize("rule", ["hebb", "oja", "delta"])
def test_every_learned_quantity_gets_a_gradient(rule: str) -> None:
    body = make_body(rule=rule)
    body(make_tokens())[0].logsumexp(-1).square().sum().backward()
    names = set()
    for part in parts(body):
        for name, parameter in part.named_parameters():
            assert parameter.grad is not None
            assert parameter.grad.abs().max() > 0, name
            names.add(name)
    assert {"raw_scale", "raw_eta", "raw_tau_fast", "raw_tau_slow", "raw_eta_s", "key.weight"} <= names
    fixed = make_body(rule=rule, learnable=False)
    assert all("raw_" not in name for name, _ in fixed.named_parameters())
    torch.testing.assert_close(fixed(make_tokens())[0], body(make_tokens())[0], rtol=1e-6, atol=1e-7)


def test_slow_weights_can_be_left_out() -> None:
    body = make_body(eta_s=0.0)
    state = body(make_tokens())[1]
    assert state["layers"]["0"]["attention"]["output"]["hebb"].keys() == {"fast"}
    assert not any("raw_eta_s" in name or "tau_slow" in name for name, _ in body.named_parameters())


@pytest.mark.parametrize("rule", ["hebb", "oja", "delta"])
def test_fast_weights_stay_bounded_over_a_thousand_tokens(rule: str) -> None:
    body, tokens = make_body(rule=rule, eta=1.0, tau_fast=100.0, learnable=False), make_tokens(1000)
    vitals = Vitals()
    logits, _ = body(tokens, vitals=vitals)
    assert logits.isfinite().all()
    values = vitals.mean()
    assert values.keys() == {f"hebb/{name}" for name in Hebb.vital_names}
    assert 0 < values["hebb/fast_norm"] < 1000
    assert 0 < values["hebb/slow_norm"] < 1000
    assert 0 < values["hebb/contribution"] < 1000


def test_state_is_float32_under_bf16() -> None:
    body = Transformer(CONFIG)
    body.plug([Hebb()])
    initialize(body, seed=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, state = body(make_tokens())
    hebb = state["layers"]["0"]["attention"]["output"]["hebb"]
    assert {part.dtype for part in hebb.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tau_fast": -3.0}, "tau_fast = -3.0 .* > 0"),
        ({"tau_slow": 0.0}, "tau_slow"),
        ({"rule": "bcm"}, "rule = 'bcm'"),
        ({"rule": "delta", "eta": 1.5, "learnable": False}, "eta = 1.5 .* <= 1"),
        ({"rule": "delta", "eta": 1.0}, "eta = 1 .* < 1 where it is learned"),
        ({"heads": 3}, "heads = 3 does not divide the 16 output features of attention_output"),
    ],
)
def test_bad_parameters_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_body(**values)


def test_a_missing_site_is_named() -> None:
    body = Transformer(CONFIG)
    for socket in body.sockets("branch"):
        socket.shape["site"] = "mixer_up"
    with pytest.raises(SocketError, match="attention_output does not exist in this body; it has mixer_up"):
        body.plug([Hebb()])


def hebbian_change(rank: int, **values: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The change of the map that F amounts to after 400 tokens, and the true correlation of x with x W: (32, 24)."""
    g = torch.Generator().manual_seed(0)
    hp = HebbParams(**{"rule": "hebb", "rank": rank, "heads": 1, "eta_s": 0.0, "tau_fast": 1e9, **values})
    part = FastWeights(hp, 0, 32, 24)
    initialize(part, seed=0)
    part = part.double()
    mixing = torch.randn(32, 32, generator=g, dtype=torch.float64)  # so that the inputs are correlated
    x = torch.randn(1, 400, 32, generator=g, dtype=torch.float64) @ mixing
    x = x / x.square().mean(-1, keepdim=True).sqrt()
    y = x @ torch.randn(32, 24, generator=g, dtype=torch.float64)
    _, state = part(x, y, Context(torch.arange(400)[None]), None)
    return part.effective(state["fast"])[0], torch.einsum("bti,bto->io", x, y)


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()


def test_writes_are_hebbian() -> None:
    """The change of the map points along sum x (x) v: more so with more rank, and fully where that is the width."""
    found = [cosine(*hebbian_change(rank)) for rank in (2, 4, 8, 16, 32)]
    assert found == sorted(found)
    assert found[0] < 0.7
    assert found[-1] > 0.99
    separate = cosine(*hebbian_change(32, projection="separate"))
    assert abs(separate) < 0.3  # what is read through another projection is not what was written


@pytest.mark.parametrize("rank", [2, 8, 24])
def test_the_change_of_the_map_has_exactly_the_rank_of_the_fast_weights(rank: int) -> None:
    change, _ = hebbian_change(rank)
    assert torch.linalg.matrix_rank(change) == rank


def test_the_effective_change_is_what_is_read() -> None:
    """Per head the branch reads the input times the effective change, over the length of its query."""
    part = parts(make_body(rank=4, scale=0.5, eta_s=0.0))[0]
    x = torch.randn(1, 9, 16, dtype=torch.float64)
    y = torch.randn(1, 9, 16, dtype=torch.float64)
    ctx = Context(torch.arange(9)[None])
    _, state = part(x, y, ctx, None)
    probe = torch.randn(1, 1, 16, dtype=torch.float64)
    read, _ = part(probe, probe, Context(torch.tensor([[9]])), state)
    lengths = part.queries(probe).norm(dim=-1).view(4, 1)
    expected = 0.5 * (probe @ part.effective(state["fast"]))
    torch.testing.assert_close(read.view(4, 4), expected.view(4, 4) / lengths, rtol=1e-6, atol=1e-9)
