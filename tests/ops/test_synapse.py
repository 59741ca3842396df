"""The refined synapse: the parallel form against the definition, any split, conservation, and plain where plain."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from bouton.ops.fatigue_attention import Kinetics, fatigue_attention
from bouton.ops.fatigue_attention import reference as plain
from bouton.ops.synapse import Binomial, Doc2, Endocytosis, Metabolism, Refinements, reference, stream, synapse
from bouton.ops.synapse import torch as parallel

HEADS = 4
Numbers = tuple[float, ...]
KINETICS: Numbers = (0.8, 0.55, 0.7, 3.0, -0.3, 1.0, 0.9, 1.0, 1.3, 1e-3)
DOC2: Numbers = (0.95, 0.2, 0.7, 0.3, 0.2)
METABOLISM: Numbers = (0.05, 0.4, 0.9, 6.0, 0.8)
NAMES = ("doc2", "endocytosis", "metabolism", "stochastic")


def heads(values: Numbers) -> list[Tensor]:
    """Constants that differ from head to head."""
    spread = 1 + 0.02 * torch.arange(HEADS, dtype=torch.float64)
    return [(value * spread).requires_grad_() for value in values]


def refined(names: tuple[str, ...], tq: int, delay: int = 3, mode: str = "normal_reparam") -> Refinements:
    noise = None
    if "stochastic" in names:
        key = stream(torch.tensor(5), torch.tensor(2), 1, torch.arange(2))
        noise = Binomial(mode, 5, 5, 0.7, 0.5, key, torch.arange(tq)[None])
    return Refinements(
        Doc2(*heads(DOC2)) if "doc2" in names else None,
        Endocytosis(heads((0.3,))[0], delay) if "endocytosis" in names else None,
        Metabolism(*heads(METABOLISM)) if "metabolism" in names else None,
        noise,
    )


def leaves(refinements: Refinements, kinetics: Kinetics) -> list[Tensor]:
    found = list(kinetics)
    if refinements.doc2 is not None:
        found += refinements.doc2
    if refinements.endocytosis is not None:
        found.append(refinements.endocytosis.prime)
    if refinements.metabolism is not None:
        found += refinements.metabolism
    return found


def inputs(tq: int, tk: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    g = torch.Generator().manual_seed(3)
    shapes = ((2, HEADS, tq, 6), (2, 2, tk, 6), (2, 2, tk, 6))
    return [torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def grown(refinements: Refinements, kinetics: Kinetics, tk: int, tq: int) -> tuple[dict[str, Tensor], list[Tensor]]:
    """A state in which old keys have been used and new ones are born, and the values of the old keys."""
    born = reference.newborn(kinetics, refinements, (2, HEADS, tq))
    g = torch.Generator().manual_seed(4)
    state, olds = {}, []
    for name, x in born.items():
        shape = (2, HEADS, tk - tq, *x.shape[3:])
        old = torch.rand(shape, generator=g, dtype=torch.float64) * (0.1 if name == "ring" else 0.5)
        olds.append(old.requires_grad_())
        state[name] = torch.cat((old, x), dim=2)
    return state, olds


def call(form: Any, q: Tensor, k: Tensor, v: Tensor, *rest: Any, **options: Any) -> tuple[Tensor, dict[str, Tensor]]:
    return form.forward(q, k, v, *rest, **options)


COMBINATIONS = [(), *((name,) for name in NAMES), ("doc2", "endocytosis"), NAMES]
OPTIONS: dict[str, dict[str, Any]] = {
    "causal": {},
    "window": {"window": 7},
    "documents": {"documents": True},
    "window and bias": {"window": 9, "bias": True, "documents": True},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("rule", ["min", "mul"])
@pytest.mark.parametrize("names", COMBINATIONS, ids="+".join)
def test_parallel_equals_the_definition(
    names: tuple[str, ...], rule: str, options: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "QUERIES_PER_BLOCK", 8)
    tq, tk = 21, 25
    chosen = dict(OPTIONS[options])
    q, k, v = inputs(tq, tk)
    kinetics, refinements = Kinetics(*heads(KINETICS)), refined(names, tq)
    state, olds = grown(refinements, kinetics, tk, tq)
    wanted = [q, k, v, *olds, *leaves(refinements, kinetics)]
    if chosen.pop("documents", False):
        segments = (torch.arange(tk) >= torch.tensor([[9], [14]])).long()
        chosen |= {"segments_q": segments[:, tk - tq :], "segments_k": segments}
    if chosen.pop("bias", False):
        bias = torch.linspace(-1, 1, HEADS * tk, dtype=torch.float64).view(1, HEADS, 1, tk).requires_grad_()
        chosen["bias"] = bias
        wanted.append(bias)
    results = []
    for form in (reference, parallel):
        out, after = call(form, q, k, v, kinetics, state, refinements, rule=rule, release="kinetic", **chosen)
        g = torch.Generator().manual_seed(6)
        loss = (out * torch.randn(out.shape, generator=g, dtype=torch.float64)).sum()
        for x in after.values():
            loss = loss + (x * torch.randn(x.shape, generator=g, dtype=torch.float64)).sum()
        grads = torch.autograd.grad(loss, wanted, allow_unused=True)
        results.append((out, after, grads))
    (out, after, grads), (ours, ours_after, our_grads) = results
    torch.testing.assert_close(ours, out, rtol=1e-10, atol=1e-10)
    assert after.keys() == ours_after.keys()
    for name, x in after.items():
        torch.testing.assert_close(ours_after[name], x, rtol=1e-10, atol=1e-10, msg=name)
    for i, (grad, ours) in enumerate(zip(grads, our_grads, strict=True)):
        if grad is None or ours is None:
            assert all(g is None or not g.any() for g in (grad, ours)), i
        else:
            torch.testing.assert_close(ours, grad, rtol=1e-9, atol=1e-9, msg=str(i))


@pytest.mark.parametrize("delay", [1, 2, 5, 40])
def test_every_delay_is_exact(delay: int) -> None:
    q, k, v = inputs(23, 23)
    kinetics, refinements = Kinetics(*heads(KINETICS)), refined(("endocytosis",), 23, delay)
    state = reference.newborn(kinetics, refinements, (2, HEADS, 23))
    forms = [
        call(form, q, k, v, kinetics, state, refinements, rule="min", release="kinetic")
        for form in (reference, parallel)
    ]
    torch.testing.assert_close(forms[1][0], forms[0][0], rtol=1e-11, atol=1e-11)
    for name in forms[0][1]:
        torch.testing.assert_close(forms[1][1][name], forms[0][1][name], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("rule", "release"), list(product(("min", "mul"), ("kinetic", "age"))))
@pytest.mark.parametrize("window", [None, 6])
def test_without_refinements_it_is_fatigue_attention(rule: str, release: str, window: int | None) -> None:
    q, k, v = inputs(21, 21)
    kinetics = Kinetics(*heads(KINETICS))
    expected, state = fatigue_attention(q, k, v, kinetics, rule=rule, release=release, window=window)
    out, after = synapse(q, k, v, kinetics, Refinements(), rule=rule, release=release, window=window)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    assert after.keys() == state.keys()
    for name, x in after.items():
        torch.testing.assert_close(x, state[name][..., 21 - x.shape[2] :], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rule", ["min", "mul"])
def test_the_plain_step_is_that_of_fatigue_attention(rule: str) -> None:
    kinetics = Kinetics(*heads(KINETICS))
    g = torch.Generator().manual_seed(1)
    logits, calcium, pool = (torch.rand(2, HEADS, 9, generator=g, dtype=torch.float64) for _ in range(3))
    seen = torch.arange(9) < 7
    kin = kinetics.per_head()
    n, c, r = plain.step(logits, seen, calcium, pool, kin, rule, "kinetic")
    ours, state, _ = reference.step(
        logits, seen, {"calcium": calcium, "pool": pool}, kin, Refinements(), rule, "kinetic", 0, torch.arange(9)
    )
    torch.testing.assert_close(ours, n, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(state["calcium"], c, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(state["pool"], r, rtol=1e-14, atol=1e-14)


def test_neutral_strengths_change_nothing() -> None:
    q, k, v = inputs(21, 21)
    kinetics = Kinetics(*heads(KINETICS))
    expected, _ = synapse(q, k, v, kinetics, Refinements())
    rho, alpha, half, *_ = heads(DOC2)
    silent = Doc2(rho, alpha, half, torch.zeros(HEADS).double(), torch.zeros(HEADS).double())
    *rest, strength = heads(METABOLISM)
    free = Metabolism(*rest, torch.zeros_like(strength))
    out, _ = synapse(q, k, v, kinetics, Refinements(doc2=silent, metabolism=free))
    torch.testing.assert_close(out, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("rule", ["min", "mul"])
def test_float32_is_close_to_float64(rule: str) -> None:
    names = ("doc2", "endocytosis", "metabolism")
    exact, rounded = (
        synapse(*inputs(70, 70, dtype), Kinetics(*heads(KINETICS)), _cast(refined(names, 70, 15), dtype), rule=rule)
        for dtype in (torch.float64, torch.float32)
    )
    assert rounded[0].dtype == torch.float32
    torch.testing.assert_close(rounded[0].double(), exact[0], rtol=1e-4, atol=1e-4)
    for name, x in exact[1].items():
        torch.testing.assert_close(rounded[1][name].double(), x, rtol=1e-4, atol=1e-4)


def _cast(refinements: Refinements, dtype: torch.dtype) -> Refinements:
    def cast(x: Any) -> Any:
        return x if x is None else type(x)(*(y.to(dtype) if isinstance(y, Tensor) else y for y in x))

    doc2, endocytosis, metabolism, noise = refinements
    return Refinements(cast(doc2), cast(endocytosis), cast(metabolism), noise)


def test_any_split_is_equal() -> None:
    tq = 21
    q, k, v = inputs(tq, tq)
    kinetics, refinements = Kinetics(*heads(KINETICS)), refined(NAMES, tq)
    assert refinements.stochastic is not None
    for window in (None, 6):
        whole, final = synapse(q, k, v, kinetics, refinements, window=window)
        state, parts, at = None, [], 0
        for size in (1, 7, 1, 11, 1):
            upto = at + size
            positions = torch.arange(at, upto)[None]
            piece = refinements._replace(stochastic=refinements.stochastic._replace(positions=positions))
            low = 0 if window is None else max(0, at - window + 1)
            out, state = synapse(
                q[:, :, at:upto], k[:, :, low:upto], v[:, :, low:upto], kinetics, piece, state, window=window
            )
            parts.append(out)
            at = upto
        torch.testing.assert_close(torch.cat(parts, 2), whole, rtol=1e-12, atol=1e-12)
        assert state is not None
        for name, x in final.items():
            torch.testing.assert_close(state[name], x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rule", ["min", "mul"])
def test_vesicles_are_conserved_over_ten_thousand_tokens(rule: str) -> None:
    one = torch.ones(1)
    kin = Kinetics(*(value * one[:, None] for value in KINETICS))
    doc2 = Doc2(*(value * one[:, None] for value in DOC2))
    refinements = Refinements(doc2=doc2, endocytosis=Endocytosis(0.04 * one[:, None], 15))
    state = reference.newborn(Kinetics(*(x[:, 0] for x in kin)), refinements, (1, 1, 12))
    g = torch.Generator().manual_seed(0)
    seen, distance = torch.ones(1, 1, 12, dtype=torch.bool), torch.zeros(12, dtype=torch.int64)
    lowest = highest = 1.0
    for logits in 3 * torch.randn(10_000, 1, 1, 12, generator=g):
        _, state, _ = reference.step(logits, seen, state, kin, refinements, rule, "kinetic", 0, distance)
        total = state["pool"] + state["reserve"] + state["ring"].sum(-1)
        lowest, highest = min(lowest, total.min().item()), max(highest, total.max().item())
        assert min(x.min() for x in state.values()) >= 0
        assert state["pool"].max() <= 1 + 1e-4
    assert 1 - 1e-4 < lowest <= highest < 1 + 1e-4
    assert state["pool"].max() < 0.9  # ... and the cycle was in use


def test_energy_is_paid_for_and_filled_up() -> None:
    kin = Kinetics(*(torch.full((1, 1), value, dtype=torch.float64) for value in KINETICS))
    m = Metabolism(*(torch.full((1, 1), value, dtype=torch.float64) for value in METABOLISM))
    refinements = Refinements(metabolism=m)
    state = reference.newborn(Kinetics(*(x[:, 0] for x in kin)), refinements, (1, 1, 1))
    busy, idle = torch.ones(1, 1, 1, dtype=torch.bool), torch.zeros(1, 1, 1, dtype=torch.bool)
    run = (kin, refinements, "min", "kinetic", 0, torch.zeros(1, dtype=torch.int64))
    sizes = []
    for _ in range(60):
        before = state["energy"].item()
        _, state, released = reference.step(torch.full((1, 1, 1), 3.0).double(), busy, state, *run)
        expected = max(before + 0.05 * (1 - before) - 0.4 * released.released.item(), 0)
        assert state["energy"].item() == pytest.approx(expected, abs=1e-12)
        assert isinstance(released.amplitude, Tensor)
        sizes.append(released.amplitude.item())
    assert sizes == sorted(sizes, reverse=True)
    tired = state["energy"].item()
    for _ in range(200):
        _, state, _ = reference.step(torch.zeros(1, 1, 1).double(), idle, state, *run)
    assert tired < 0.5 < 0.99 < state["energy"].item()


def test_asynchronous_release_outlasts_the_spikes() -> None:
    kin = Kinetics(*(torch.full((1, 1), value, dtype=torch.float64) for value in KINETICS))
    refinements = Refinements(doc2=Doc2(*(torch.full((1, 1), value, dtype=torch.float64) for value in DOC2)))
    state = reference.newborn(Kinetics(*(x[:, 0] for x in kin)), refinements, (1, 1, 1))
    run = (kin, refinements, "min", "kinetic", 0, torch.zeros(1, dtype=torch.int64))
    seen, shares = torch.ones(1, 1, 1, dtype=torch.bool), []
    for logit in [3.0] * 10 + [-20.0] * 10:
        _, state, released = reference.step(torch.full((1, 1, 1), logit).double(), seen, state, *run)
        shares.append((released.asynchronous / released.released).item())
    assert max(shares[:10]) < 0.5
    assert min(shares[10:]) > 0.99
    assert released.released.item() > 0.05


def test_what_does_not_fit_is_refused() -> None:
    q, k, v = inputs(5, 5)
    kinetics = Kinetics(*heads(KINETICS))
    with pytest.raises(ValueError, match="release = 'age' has no calcium"):
        synapse(q, k, v, kinetics, refined(("doc2",), 5), release="age")
    with pytest.raises(ValueError, match="delay = 0 must be at least 1"):
        synapse(q, k, v, kinetics, refined(("endocytosis",), 5, 0))
    _, state = synapse(q, k, v, kinetics, Refinements())
    with pytest.raises(ValueError, match="state has no 'energy', only calcium, pool"):
        synapse(q[:, :, :1], k, v, kinetics, refined(("metabolism",), 1), state)
    with pytest.raises(ValueError, match=r"state\['pool'\] has shape .* but 4 old keys need"):
        short = {name: x[:, :, :2] for name, x in state.items() if name == "pool"} | {"calcium": state["calcium"]}
        synapse(q[:, :, :1], k, v, kinetics, Refinements(), short)


def test_no_tensor_of_all_pairs_is_kept_for_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    tq = 256
    kinetics, refinements = Kinetics(*heads(KINETICS)), refined(NAMES, tq)

    def kept(block: int) -> int:
        monkeypatch.setattr(parallel, "QUERIES_PER_BLOCK", block)
        numbers = 0

        def pack(x: Tensor) -> Tensor:
            nonlocal numbers
            numbers += x.numel()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            synapse(*inputs(tq, tq), kinetics, refinements)
        return numbers

    pairs = 2 * HEADS * tq * tq
    assert kept(32) < pairs / 2
    assert kept(tq) > 5 * pairs
