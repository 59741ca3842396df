"""Drawn releases: the generator against SplitMix64 in integers of Python, and the statistics of every mode."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bouton.ops.synapse.random import BITS, fold, normal, uniforms
from bouton.ops.synapse.release import MODES, Binomial, drawn, read, stream

ROWS, HEADS, QUERIES, KEYS = 4, 3, 40, 50


def noise(mode: str, vesicles: int, cap: int | None = None, fraction: float = 1.0, first: int = 0) -> Binomial:
    key = stream(torch.tensor(11), torch.tensor(3), 2, torch.arange(ROWS))
    positions = torch.arange(first, QUERIES)[None]
    return Binomial(mode, vesicles, vesicles if cap is None else cap, 0.5, fraction, key, positions)


def distances(first: int = 0) -> Tensor:
    return torch.arange(first, QUERIES)[:, None] - torch.arange(KEYS)


def samples(mode: str, w: float, vesicles: int, cap: int | None = None) -> Tensor:
    mean = torch.full((ROWS, HEADS, QUERIES, KEYS), w, dtype=torch.float64)
    return read(mean, noise(mode, vesicles, cap), 0, distances())


def split_mix(seed: int, index: int) -> int:
    """Output ``index`` of SplitMix64."""
    mask = 2**64 - 1
    x = (seed + (index + 1) * 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


def test_the_hash_is_splitmix64() -> None:
    assert split_mix(0, 0) == 0xE220A8397B1DCDAF  # published first output for seed 0
    for seed in (0, 1, 987654321, 2**62):
        expected = [split_mix(seed, i) for i in range(20)]
        for got in (
            fold(torch.tensor(seed), torch.arange(20)).tolist(),
            [fold(torch.tensor(seed), i).item() for i in range(20)],
        ):
            assert [x % 2**64 for x in got] == expected


def test_uniform_and_normal_numbers() -> None:
    key = fold(torch.tensor(5), torch.arange(200_000))
    a, b = uniforms(key, torch.float64)
    for u in (a, b):
        assert 0 < u.min() and u.max() < 1  # noqa: SIM300
        assert u.mean().item() == pytest.approx(0.5, abs=4 * 12**-0.5 / len(u) ** 0.5)
        assert u.var().item() == pytest.approx(1 / 12, rel=0.01)
        counts = torch.histc(u, 64, 0, 1)
        expected = len(u) / 64
        assert ((counts - expected) ** 2 / expected).sum() < 110  # chi-squared with 63 degrees of freedom: p = 2e-4
    assert abs(torch.corrcoef(torch.stack((a, b)))[0, 1]) < 4 / len(a) ** 0.5
    assert abs(torch.corrcoef(torch.stack((a[1:], a[:-1])))[0, 1]) < 4 / len(a) ** 0.5
    assert torch.equal(uniforms(key, torch.float32)[0].double(), a)
    z = normal(key, torch.float64)
    assert abs(z.mean()) < 4 / len(z) ** 0.5
    assert z.var().item() == pytest.approx(1, rel=0.02)
    assert (z.abs() < 1.96).double().mean().item() == pytest.approx(0.95, abs=0.003)
    assert 2.0**-BITS / 2 <= a.min()  # noqa: SIM300


@pytest.mark.parametrize("vesicles", [1, 3, 8])
@pytest.mark.parametrize("w", [0.05, 0.3, 0.9])
@pytest.mark.parametrize("mode", ["straight_through", "gumbel_sigmoid_ste"])
def test_counts_are_binomial(mode: str, w: float, vesicles: int) -> None:
    y = samples(mode, w, vesicles)
    count = y * vesicles
    assert torch.allclose(count, count.round(), atol=1e-9)
    number = y.numel()
    for k in range(vesicles + 1):
        p = math.comb(vesicles, k) * w**k * (1 - w) ** (vesicles - k)
        share = (count.round() == k).double().mean().item()
        assert share == pytest.approx(p, abs=4.5 * (p * (1 - p) / number) ** 0.5 + 1e-6)
    assert y.mean().item() == pytest.approx(w, abs=4 * (w * (1 - w) / vesicles / number) ** 0.5)
    assert y.var().item() == pytest.approx(w * (1 - w) / vesicles, rel=0.05)


def test_the_reparametrised_normal_has_mean_and_variance_where_it_is_not_clipped() -> None:
    y = samples("normal_reparam", 0.5, 16)
    assert y.mean().item() == pytest.approx(0.5, abs=4 * (0.25 / 16 / y.numel()) ** 0.5)
    assert y.var().item() == pytest.approx(0.25 / 16, rel=0.03)
    low = samples("normal_reparam", 0.02, 4)
    assert low.min() == 0
    assert low.mean() > 0.02  # the bias of clipping


@pytest.mark.parametrize("mode", MODES)
def test_what_is_certain_is_certain_and_the_cap_holds(mode: str) -> None:
    assert not samples(mode, 0.0, 4).any()
    assert torch.allclose(samples(mode, 1.0, 4), torch.ones(()).double())
    capped = samples(mode, 0.7, 4, cap=2)
    assert capped.max().item() == pytest.approx(0.5)
    assert capped.unique().numel() > 1


@pytest.mark.parametrize("mode", MODES)
def test_gradients(mode: str) -> None:
    w = torch.linspace(0.0, 1.0, KEYS, dtype=torch.float64).expand(ROWS, HEADS, QUERIES, KEYS).clone().requires_grad_()
    y = read(w, noise(mode, 5), 0, distances())
    (grad,) = torch.autograd.grad(y.sum(), w)
    assert torch.isfinite(grad).all()
    inner = grad[..., 1:-1]
    if mode == "straight_through":
        assert torch.equal(inner, torch.ones_like(inner))
    elif mode == "gumbel_sigmoid_ste":
        assert inner.min() >= 0
        assert 0.5 < inner.mean() < 2
    else:
        step = 1e-7
        with torch.no_grad():
            higher, lower = (read(w + s, noise(mode, 5), 0, distances())[..., 1:-1] for s in (step, -step))
        torch.testing.assert_close(inner, (higher - lower) / (2 * step), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_a_draw_depends_on_its_key_and_positions_alone(mode: str) -> None:
    w = torch.rand(ROWS, HEADS, QUERIES, KEYS, generator=torch.Generator().manual_seed(0)).double()
    whole = read(w, noise(mode, 3, fraction=0.5), 0, distances())
    # later queries of the same pass; fewer keys; a later pass; a row alone
    assert torch.equal(read(w[:, :, 9:], noise(mode, 3, fraction=0.5), 9, distances()[9:]), whole[:, :, 9:])
    assert torch.equal(read(w[..., 7:], noise(mode, 3, fraction=0.5), 0, distances()[:, 7:]), whole[..., 7:])
    assert torch.equal(read(w[:, :, 9:], noise(mode, 3, fraction=0.5, first=9), 0, distances(9)), whole[:, :, 9:])
    alone = noise(mode, 3, fraction=0.5)
    alone = alone._replace(stream=alone.stream[2:3])
    assert torch.equal(read(w[2:3], alone, 0, distances()), whole[2:3])
    halves = [read(x, noise(mode, 3, fraction=0.5), 0, distances()) for x in (w.float(), w.float().double())]
    torch.testing.assert_close(halves[0].double(), halves[1], rtol=1e-5, atol=1e-5)


def test_a_share_of_the_positions_is_drawn_in_all_heads() -> None:
    w = torch.full((ROWS, HEADS, QUERIES, KEYS), 0.4, dtype=torch.float64)
    some = noise("straight_through", 2, fraction=0.25)
    y = read(w, some, 0, distances())
    chosen = drawn(some, 0, QUERIES)
    assert torch.equal((y != w).any(-1), chosen[:, None].expand(ROWS, HEADS, QUERIES))
    many = some._replace(positions=torch.arange(20_000)[None])
    assert drawn(many, 0, 20_000).double().mean().item() == pytest.approx(0.25, abs=0.006)
    assert not torch.equal(y[:, 0], y[:, 1])  # heads draw by themselves
    assert not drawn(some._replace(fraction=0.0), 0, QUERIES).any()
    assert torch.equal(read(w, some._replace(fraction=0.0), 0, distances()), w)


def test_every_part_of_the_key_counts() -> None:
    rows = torch.arange(ROWS)
    base = (torch.tensor(11), torch.tensor(3), 2, rows)
    keys = {tuple(stream(*base).tolist())}
    for other in (
        (torch.tensor(12), *base[1:]),
        (base[0], torch.tensor(4), *base[2:]),
        (*base[:2], 3, rows),
        (*base[:3], rows + 100),
        (*base[:3], rows + (1 << 40)),
    ):
        keys.add(tuple(stream(*other).tolist()))
    assert len(keys) == 6
    assert len({x for key in keys for x in key}) == 6 * ROWS
