"""The parallel forms of fast weights equal the sequential definition: outputs, final state, gradients."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from bouton.errors import KernelError
from bouton.ops.fast_weights import RULES, fast_weights, fast_weights_reference

B, H, T, R, DV = 2, 3, 13, 4, 5
NAMES = ("q", "k", "v", "eta", "rho_f", "rho_s", "eta_s", "gate", "fast", "slow")


def make_inputs(seed: int = 0, tokens: int = T) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=draw, dtype=torch.float64)

    return {
        "q": torch.nn.functional.normalize(normal(B, H, tokens, R), dim=-1),
        "k": torch.nn.functional.normalize(normal(B, H, tokens, R), dim=-1),
        "v": normal(B, H, tokens, DV),
        "eta": uniform(0.05, 0.9, B, H, tokens),  # with |v| about 1, Oja's decay reaches 0 at some tokens
        "rho_f": uniform(0.6, 0.99, H),
        "rho_s": uniform(0.8, 0.99, H),
        "eta_s": uniform(0.1, 0.5, H),
        "gate": uniform(0.0, 1.0, B, H, tokens),
        "fast": normal(B, H, R, DV),
        "slow": normal(B, H, R, DV),
    }


def make_starts(tokens: int = T) -> Tensor:
    starts = torch.zeros(B, tokens, dtype=torch.bool)
    starts[0, [0, 5, 6]] = True
    starts[1, tokens - 1] = True
    return starts


def gradients(read: Tensor, state: dict[str, Tensor], wanted: list[Tensor]) -> list[Tensor]:
    """Gradients of a fixed random functional of every output."""
    draw = torch.Generator().manual_seed(7)
    loss = torch.zeros((), dtype=torch.float64)
    for out in (read, *(state[name] for name in sorted(state))):
        loss = loss + (out * torch.randn(out.shape, generator=draw, dtype=out.dtype)).sum()
    return list(torch.autograd.grad(loss, wanted))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("slow", "gated", "resets", "initial"),
    list(itertools.product((True, False), (True, False), (True, False), (True, False))),
)
def test_equals_reference(rule: str, slow: bool, gated: bool, resets: bool, initial: bool) -> None:
    x = {name: value.requires_grad_() for name, value in make_inputs().items()}
    starts = make_starts() if resets else None
    gate = x["gate"] if gated else None
    off = torch.zeros(H, dtype=torch.float64)
    given = {"fast": x["fast"], "slow": x["slow"] if slow else torch.zeros_like(x["slow"])} if initial else None
    expected, final = fast_weights_reference(
        x["q"], x["k"], x["v"], x["eta"], rho_f=x["rho_f"], rho_s=x["rho_s"], eta_s=x["eta_s"] if slow else off,
        gate=gate, rule=rule, state=given, starts=starts,
    )  # fmt: skip
    if not slow:
        final.pop("slow")
    used = ["q", "k", "v", "eta", "rho_f"] + (["rho_s", "eta_s"] if slow else [])
    used += (["gate"] if slow and gated else []) + (["fast"] if initial else [])
    used += ["slow"] if initial and slow else []
    wanted = [x[name] for name in used]
    expected_gradients = gradients(expected, final, wanted)

    entering = None if not initial else {name: x[name] for name in (("fast", "slow") if slow else ("fast",))}
    for chunk in (1, 3, 4, 64):
        read, state = fast_weights(
            x["q"], x["k"], x["v"], x["eta"], rho_f=x["rho_f"], rho_s=x["rho_s"], eta_s=x["eta_s"] if slow else 0.0,
            gate=gate, rule=rule, state=entering, starts=starts, chunk=chunk, backend="torch",
        )  # fmt: skip
        torch.testing.assert_close(read, expected, rtol=1e-9, atol=1e-11)
        assert state.keys() == final.keys()
        for name in final:
            torch.testing.assert_close(state[name], final[name], rtol=1e-9, atol=1e-11)
        for name, got, wish in zip(used, gradients(read, state, wanted), expected_gradients, strict=True):
            torch.testing.assert_close(got, wish, rtol=1e-8, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("rule", RULES)
def test_any_split_equals_the_whole(rule: str) -> None:
    x = make_inputs(seed=1, tokens=37)
    starts = make_starts(37)
    kernel = {name: x[name] for name in ("rho_f", "rho_s", "eta_s")}

    def run(begin: int, end: int, state: dict[str, Tensor] | None) -> tuple[Tensor, dict[str, Tensor]]:
        cut = {name: x[name][:, :, begin:end] for name in ("q", "k", "v", "eta", "gate")}
        return fast_weights(**cut, **kernel, rule=rule, state=state, starts=starts[:, begin:end], chunk=8)

    whole, final = run(0, 37, None)
    for bounds in (list(range(38)), [0, 1, 8, 20, 21, 37]):  # token by token, and uneven pieces
        state, reads = None, []
        for begin, end in itertools.pairwise(bounds):
            read, state = run(begin, end, state)
            reads.append(read)
        torch.testing.assert_close(torch.cat(reads, dim=2), whole, rtol=1e-9, atol=1e-11)
        assert state is not None
        for name in final:
            torch.testing.assert_close(state[name], final[name], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("rho", [0.0, 1e-6, 1.0])
def test_extreme_decays_stay_exact_in_float32(rule: str, rho: float) -> None:
    """A factorised decay rho^t rho^-i would overflow here; ratios inside a chunk do not, nor do their gradients."""
    x = {name: value.detach() for name, value in make_inputs(seed=2, tokens=200).items()}
    decay = torch.full((H,), rho, dtype=torch.float64)
    expected, _ = fast_weights_reference(
        x["q"], x["k"], x["v"], x["eta"], rho_f=decay, rho_s=decay, eta_s=x["eta_s"], rule=rule
    )
    single = decay.float().requires_grad_()
    args = [x[name].float() for name in ("q", "k", "v", "eta")]
    read, _ = fast_weights(*args, rho_f=single, rho_s=single, eta_s=x["eta_s"].float(), rule=rule)
    assert (read.double() - expected).norm() < 1e-5 * expected.norm()
    (gradient,) = torch.autograd.grad(read.square().mean(), single)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("rule", RULES)
def test_state_stays_bounded(rule: str) -> None:
    """|F| <= eta |v| / (1 - rho) for unit keys, whatever the number of writes."""
    draw = torch.Generator().manual_seed(3)
    k = torch.nn.functional.normalize(torch.randn(1, 1, 2000, R, generator=draw), dim=-1)
    v = torch.nn.functional.normalize(torch.randn(1, 1, 2000, DV, generator=draw), dim=-1)
    read, state = fast_weights(k, k, v, 0.5, rho_f=0.95, rho_s=0.9, eta_s=0.1, rule=rule)
    assert read.isfinite().all()
    assert state["fast"].norm() <= 0.5 / 0.05
    assert state["slow"].norm() <= 0.5 / 0.05 * 0.1 / 0.1


def test_delta_clamps_its_rate() -> None:
    x = make_inputs()
    common = {"rho_f": 0.9, "rho_s": 0.9, "eta_s": 0.0, "rule": "delta"}
    high, _ = fast_weights(x["q"], x["k"], x["v"], 7.0, **common)
    one, _ = fast_weights(x["q"], x["k"], x["v"], 1.0, **common)
    assert torch.equal(high, one)


def test_delta_overwrites_a_key() -> None:
    """With rate 1 and no decay the second value of a key replaces the first; hebb sums them."""
    key = torch.tensor([1.0, 0.0, 0.0]).double()
    v = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]).double().view(1, 1, 3, 2)
    k = key.expand(1, 1, 3, 3)
    delta, _ = fast_weights(k, k, v, 1.0, rho_f=1.0, rho_s=1.0, eta_s=0.0, rule="delta")
    hebb, _ = fast_weights(k, k, v, 1.0, rho_f=1.0, rho_s=1.0, eta_s=0.0, rule="hebb")
    assert delta[0, 0, 2].tolist() == [0.0, 2.0]
    assert hebb[0, 0, 2].tolist() == [1.0, 2.0]


def test_slow_part_is_absent_when_off() -> None:
    x = make_inputs()
    args = (x["q"], x["k"], x["v"], x["eta"])
    _, state = fast_weights(*args, rho_f=0.9, rho_s=0.5, eta_s=0.0)
    assert state.keys() == {"fast"}
    # A slow part that a state brings along is read and decays.
    entering = {"fast": torch.zeros_like(x["fast"]), "slow": x["slow"]}
    read, state = fast_weights(*args, rho_f=0.9, rho_s=0.5, eta_s=0.0, state=entering)
    torch.testing.assert_close(state["slow"], x["slow"] * 0.5**T)
    torch.testing.assert_close(read[:, :, 0], (x["q"][:, :, :1] @ x["slow"]).squeeze(2))


def test_low_precision_keeps_a_float32_state() -> None:
    x = {name: value.bfloat16() for name, value in make_inputs(tokens=70).items()}
    full = [x[name].float() for name in ("q", "k", "v", "eta")]
    common = {"rho_f": 0.99, "rho_s": 0.99, "eta_s": 0.1}
    expected, _ = fast_weights(*full, **common)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        read, state = fast_weights(*(x[name] for name in ("q", "k", "v", "eta")), **common)
        same, _ = fast_weights(*full, **common)
    assert read.dtype == torch.bfloat16
    assert {part.dtype for part in state.values()} == {torch.float32}
    assert torch.equal(same, expected)
    assert torch.equal(read, expected.bfloat16())


def correlation_cosine(rank: int, width: int = 24, tokens: int = 400) -> float:
    """Cosine of the fast weights, mapped back to the input space, with the true correlation sum_t x_t (x) y_t."""
    draw = torch.Generator().manual_seed(5)
    x = torch.randn(1, 1, tokens, width, generator=draw, dtype=torch.float64)
    y = x @ torch.randn(width, 9, generator=draw, dtype=torch.float64)
    rows = torch.linalg.qr(torch.randn(width, width, generator=draw, dtype=torch.float64)).Q[:rank]
    k = torch.nn.functional.normalize(x @ rows.T, dim=-1)
    _, state = fast_weights(k, k, y, 1.0, rho_f=1.0, rho_s=1.0, eta_s=0.0)
    change = rows.T @ state["fast"][0, 0]
    return float(torch.cosine_similarity(change.flatten(), (x[0, 0].T @ y[0, 0]).flatten(), dim=0))


def test_fast_weights_are_the_correlation_of_input_and_output() -> None:
    cosines = [correlation_cosine(rank) for rank in (2, 6, 12, 24)]
    assert cosines == sorted(cosines)
    assert cosines[-1] > 0.99
    assert cosines[0] < 0.6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rule": "bcm"}, "rule = 'bcm' is unknown"),
        ({"chunk": 0}, "chunk = 0"),
        ({"k": torch.zeros(B, H, T, R + 1)}, "must be"),
        ({"starts": torch.zeros(B, T + 1, dtype=torch.bool)}, "starts"),
        ({"state": {"fast": torch.zeros(1)}}, "state"),
        ({"backend": "triton"}, "triton"),
    ],
)
def test_bad_input_is_refused_in_one_line(change: dict[str, object], message: str) -> None:
    x = make_inputs()
    given: dict[str, object] = {name: x[name] for name in ("q", "k", "v", "eta")} | change
    with pytest.raises(KernelError, match=message) as caught:
        fast_weights(**given, rho_f=0.9, rho_s=0.9, eta_s=0.1)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
