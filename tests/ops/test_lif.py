"""The definition of the neurons, and that the torch form equals it: spikes, every gradient, the state."""

import itertools

import pytest
import torch

from bouton.errors import KernelError
from bouton.ops.lif import RESET_ORDERS, RESETS, SURROGATES, LIFOptions, lif_reference, lif_scan, rlif_scan
from bouton.ops.lif.reference import spike
from bouton.ops.lif.surrogates import surrogate_derivative

NAMES = ("x", "beta", "theta", "gain", "w_rec", "u0", "s0")
KINDS = list(itertools.product(RESETS, RESET_ORDERS, (True, False)))


def problem(batch=3, tokens=23, width=7, recurrent=True):
    draw = torch.Generator().manual_seed(0)

    def rand(*shape):
        return torch.rand(*shape, generator=draw, dtype=torch.float64)

    inputs = {
        "x": 2 * rand(batch, tokens, width) - 0.5,
        "beta": rand(width),
        "theta": 0.5 + rand(width),
        "gain": 0.5 + rand(width),
        "w_rec": rand(width, width) - 0.5 if recurrent else None,
        "u0": rand(batch, width),
        "s0": (rand(batch, width) < 0.4).double(),
    }
    starts = rand(batch, tokens) < 0.15
    return {name: None if v is None else v.requires_grad_() for name, v in inputs.items()}, starts


def outcome(function, inputs, starts, **options):
    fresh = {name: None if v is None else v.detach().clone().requires_grad_() for name, v in inputs.items()}
    spikes, u = function(fresh, starts, **options)
    draw = torch.Generator().manual_seed(1)
    weights = [torch.rand(y.shape, generator=draw, dtype=torch.float64) for y in (spikes, u)]
    (spikes * weights[0]).sum().add((u * weights[1]).sum()).backward()
    # What nothing depends on has no gradient in the definition and a gradient of 0 elsewhere.
    grads = {f"d{n}": torch.zeros_like(v) if v.grad is None else v.grad for n, v in fresh.items() if v is not None}
    return {"spikes": spikes.detach(), "u": u.detach(), **grads}


def by_definition(inputs, starts, alpha=None, **options):
    alpha = SURROGATES[options["surrogate"]] if alpha is None else alpha
    return lif_reference(*(inputs[name] for name in NAMES), starts, alpha=alpha, **options)


def by_op(inputs, starts, **options):
    rest = {name: inputs[name] for name in ("beta", "theta", "gain", "u0", "s0")}
    if inputs["w_rec"] is None:
        return lif_scan(inputs["x"], **rest, starts=starts, backend="torch", **options)
    return rlif_scan(inputs["x"], inputs["w_rec"], **rest, starts=starts, backend="torch", **options)


def assert_equal(found, expected):
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-11, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize(("reset", "order", "detach"), KINDS)
@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("documents", [False, True])
def test_equals_the_definition(reset, order, detach, recurrent, documents):
    inputs, starts = problem(recurrent=recurrent)
    kind = {"reset": reset, "reset_order": order, "detach_reset": detach, "surrogate": "atan"}
    starts = starts if documents else None
    found, expected = (outcome(f, inputs, starts, **kind) for f in (by_op, by_definition))
    assert 0.05 < expected["spikes"].mean() < 0.9
    assert_equal(found, expected)


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_every_surrogate(surrogate):
    inputs, starts = problem()
    kind = {"reset": "subtract", "reset_order": "after_decay", "detach_reset": False, "surrogate": surrogate}
    found, expected = (outcome(f, inputs, starts, **kind) for f in (by_op, by_definition))
    assert expected["dx"].abs().sum() > 0
    assert_equal(found, expected)


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_a_surrogate_is_a_bump_of_area_one(surrogate):
    x = torch.linspace(-200, 200, 4_000_001, dtype=torch.float64)
    for alpha in (SURROGATES[surrogate], 0.7):
        y = surrogate_derivative(x, surrogate, alpha)
        assert (y >= 0).all() and torch.allclose(y, y.flip(0)) and y[len(x) // 2] == y.max() > 0
        area = 2 / alpha if surrogate == "fast_sigmoid" else 1.0
        assert torch.trapezoid(y, x).item() == pytest.approx(area, rel=2e-2)


def test_gradients_by_a_formula_of_their_own():
    """Two tokens of one neuron, worked out by hand."""
    x, beta, theta, w = 1.5, 0.8, 1.0, 0.6
    values = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (x, beta, theta, w)]
    tx, tbeta, ttheta, tw = values
    currents = torch.stack([tx, 0.1 * tx]).reshape(1, 2, 1)
    spikes, u = rlif_scan(currents, tw.reshape(1, 1), tbeta.reshape(1), ttheta.reshape(1), backend="torch")
    # u1 = x, s1 = 1;  u2 = beta u1 + 0.1 x + w s1 - theta s1
    assert u.item() == pytest.approx(beta * x + 0.1 * x + w - theta)
    (3 * spikes[0, 1, 0] + 5 * u).sum().backward()

    def bump(v):
        return 1 / (1 + (torch.pi * v) ** 2)

    d2 = 3 * bump(u.item() - theta) + 5
    q1 = bump(x - theta) * d2 * w  # the reset is detached, the recurrent map is not
    d1 = q1 + beta * d2
    assert tx.grad.item() == pytest.approx(d1 + 0.1 * d2)
    assert tbeta.grad.item() == pytest.approx(d2 * x)
    assert tw.grad.item() == pytest.approx(d2)
    assert ttheta.grad.item() == pytest.approx(-3 * bump(u.item() - theta) - q1 - d2)


def test_any_split_is_equal():
    inputs, starts = problem()
    whole, last = by_op(inputs, starts)
    u, s, parts = inputs["u0"], inputs["s0"], []
    for begin, end in itertools.pairwise((0, 1, 9, 10, 23)):
        piece = {**inputs, "x": inputs["x"][:, begin:end], "u0": u, "s0": s}
        spikes, u = by_op(piece, starts[:, begin:end])
        s = spikes[:, -1]
        parts.append(spikes)
    assert torch.equal(torch.cat(parts, 1), whole)
    torch.testing.assert_close(u, last, rtol=1e-12, atol=1e-12)


def test_without_gradients_the_same_spikes():
    inputs, starts = problem()
    with torch.no_grad():
        assert torch.equal(by_op(inputs, starts)[0], by_op(inputs, starts)[0])
    assert torch.equal(by_op(inputs, starts)[0].detach(), by_definition(inputs, starts, **vars(LIFOptions()))[0])


def test_compiles_without_a_break():
    inputs, _ = problem(tokens=4)

    def run(x):
        return rlif_scan(x, inputs["w_rec"], 0.9, backend="torch")[0].sum()

    assert torch.compile(run, fullgraph=True, backend="eager")(inputs["x"]) == run(inputs["x"])


def test_a_spike_is_strictly_above():
    x = torch.tensor([0.0, -0.0, 1e-300], dtype=torch.float64)
    assert spike(x, "atan", 2.0).tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.zeros(2, 3)}, "(B, T, H)"),
        ({"x": torch.zeros(2, 3, 4, dtype=torch.int64)}, "floating"),
        ({"beta": torch.zeros(3)}, "beta"),
        ({"w_rec": torch.zeros(4, 3)}, "w_rec"),
        ({"u0": torch.zeros(1, 4)}, "u0"),
        ({"starts": torch.zeros(2, 3)}, "starts"),
        ({"reset": "subtrakt"}, "subtract"),
        ({"reset_order": "later"}, "reset_order"),
        ({"surrogate": "atam"}, "atan"),
        ({"alpha": 0.0}, "alpha"),
        ({"backend": "cuda"}, "backend"),
    ],
)
def test_mistakes_are_one_clear_line(change, words):
    call = {"x": torch.zeros(2, 3, 4), "w_rec": torch.zeros(4, 4), "beta": 0.9, **change}
    with pytest.raises(KernelError, match=words.replace("(", r"\(").replace(")", r"\)")) as error:
        rlif_scan(**call)
    assert "\n" not in str(error.value)


def test_nothing_in_nothing_out():
    spikes, u = lif_scan(torch.zeros(2, 0, 4), 0.9, u0=torch.ones(2, 4))
    assert spikes.shape == (2, 0, 4) and torch.equal(u, torch.ones(2, 4))
