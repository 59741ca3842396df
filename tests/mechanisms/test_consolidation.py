"""Consolidation on request: what it keeps, its error, and that it can be taken back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bouton.errors import ConfigError
from bouton.mechanisms.consolidation import Consolidation, branches
from bouton.mechanisms.hebb import SITES, Hebb
from bouton.models.body import Body
from bouton.models.build import build
from bouton.testing.arms import leaves, map_state

MODEL = {"vocab_size": 31, "num_layers": 2, "hidden_size": 16, "num_heads": 2}


def model_with(**values: Any) -> Body:
    values = {"eta_s": 0.1, "tau_slow": 1e5, "rank": 4} | values
    return build({"model": MODEL, "mechanism": {"hebb": values}, "seed": 0}).double().eval()


def hebb(body: Body) -> Hebb:
    found = body.mechanisms["hebb"]
    assert isinstance(found, Hebb)
    return found


def tokens(length: int = 40, seed: int = 1) -> Tensor:
    return torch.randint(0, 31, (2, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def read(body: Body, more: Tensor, state: Any) -> Tensor:
    logits: Tensor = body(more, state)[0]
    return logits


@pytest.mark.parametrize("projection", ["shared", "separate"])
@pytest.mark.parametrize("site", SITES)
def test_the_model_goes_on_as_before_within_the_reported_error(site: str, projection: str) -> None:
    body = model_with(site=site, projection=projection)
    with torch.no_grad():
        state = body(tokens())[1]
    row = map_state(state, lambda leaf: leaf[1:2])
    more = tokens(8, seed=2)[1:]
    before = read(body, more, row)
    after, found = hebb(body).consolidate(body, row, tokens()[1, -20:])
    assert 0 < found.error < 1
    changed = {path for path, leaf in leaves(after).items() if not torch.equal(leaf, leaves(row)[path])}
    assert changed == {path for path in leaves(row) if path.endswith("/slow")}
    consolidated = read(body, more, after)
    hebb(body).forget(body)
    lost = read(body, more, after)
    # What S did is lost without the increment; with it a share of the size of the error remains.
    assert (consolidated - before).norm() < 2 * found.error * (lost - before).norm()


def test_it_is_exact_where_all_queries_are_equally_long() -> None:
    """One token repeated: the text and what follows have one query."""
    body = model_with()
    same = torch.full((1, 30), 5)
    with torch.no_grad():
        state = body(same)[1]
    parts = list(branches(body).values())[:1]  # in later blocks the input still changes with the state
    held: list[Tensor] = []
    for part in parts:
        part.register_forward_hook(lambda _, __, output: held.append(output[0]))
    read(body, same[:, :1], state)
    after, found = hebb(body).consolidate(body, state, same[0, :1])
    held.clear()
    read(body, same[:, :1], after)
    with_increment = held[-1]
    hebb(body).forget(body)
    read(body, same[:, :1], state)
    torch.testing.assert_close(with_increment, held[-1], rtol=1e-9, atol=1e-12)
    assert found.errors[next(iter(found.errors))] < 1e-9


def test_weights_are_never_written_and_forgetting_is_exact() -> None:
    body = model_with()
    saved = {name: value.clone() for name, value in body.state_dict().items()}
    more = tokens(6, seed=3)
    plain = read(body, more, None)
    with torch.no_grad():
        state = body(tokens())[1]
    state, first = hebb(body).consolidate(body, state, tokens()[0], row=0)
    once = read(body, more, None)
    state, second = hebb(body).consolidate(body, state, tokens()[1], row=1)
    assert body.state_dict().keys() == saved.keys()
    assert all(torch.equal(value, saved[name]) for name, value in body.state_dict().items())
    assert not torch.equal(once, plain) and not torch.equal(read(body, more, None), once)
    hebb(body).forget(body, second)
    assert torch.equal(read(body, more, None), once)
    hebb(body).forget(body, first)
    assert torch.equal(read(body, more, None), plain)
    with pytest.raises(ConfigError, match="forget: these increments are not held"):
        hebb(body).forget(body, first)
    hebb(body).hold(body, first)
    assert torch.equal(read(body, more, None), once)


def test_an_increment_acts_like_the_same_change_of_the_weight() -> None:
    body = model_with(scale=1e-9)  # only the increment is left of the branch
    shape = next(iter(branches(body).values())).key.weight.shape[1]
    change = 0.1 * torch.randn(shape, shape, dtype=torch.float64)
    path = next(iter(branches(body)))
    found = Consolidation({path: change}, {path: 0.0})
    hebb(body).hold(body, found)
    held = read(body, tokens(), None)
    hebb(body).forget(body)
    linear = body.get_submodule(path.removesuffix(".branch.parts.hebb")).linear
    with torch.no_grad():
        linear.weight += change  # type: ignore[operator]
    torch.testing.assert_close(read(body, tokens(), None), held, rtol=1e-6, atol=1e-7)


def test_what_does_not_fit_is_refused() -> None:
    body = model_with()
    with torch.no_grad():
        state = body(tokens())[1]
    with pytest.raises(ConfigError, match="row = 2 is not valid: the state has the rows 0 to 1"):
        hebb(body).consolidate(body, state, tokens()[0], row=2)
    with pytest.raises(ConfigError, match=r"tokens \(2, 40\) must be the \(T,\) tokens of one text"):
        hebb(body).consolidate(body, state, tokens())
    with pytest.raises(ConfigError, match="increments of another model"):
        hebb(body).hold(body, Consolidation({"nowhere": torch.zeros(2, 2)}, {}))
    _, _ = hebb(body).consolidate(body, state, tokens()[0])
    with pytest.raises(ConfigError, match=r"consolidate is for inference: call body.eval\(\) first"):
        hebb(body.train()).consolidate(body, state, tokens()[0])
    with pytest.raises(ConfigError, match="which are not trained: call its forget"):
        body(tokens())
    fast_only = model_with(eta_s=0.0)
    with torch.no_grad():
        state = fast_only(tokens())[1]
    with pytest.raises(ConfigError, match="eta_s = 0 leaves no slow weights"):
        hebb(fast_only).consolidate(fast_only, state, tokens()[0])
