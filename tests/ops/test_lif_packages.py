"""The neurons of snnTorch and SpikingJelly, spike for spike and gradient for gradient, in float64."""

import pytest
import torch

from bouton.ops.lif import lif_scan, rlif_scan

BATCH, TOKENS, WIDTH = 4, 40, 16
OF_SNNTORCH = 1e-6  # its spikes are float32, whatever the currents, and with them the gradients that arrive


def currents():
    draw = torch.Generator().manual_seed(0)
    return torch.rand(BATCH, TOKENS, WIDTH, generator=draw, dtype=torch.float64) * 1.2


def compare(ours, theirs, x, tolerance=1e-9, of_largest=0.0):
    """Both take a leaf of currents and return spikes (B, T, H) and the last membrane potential, or None for it.

    Gradients may differ by ``tolerance`` of each, and by ``of_largest`` of the largest.
    """
    results = []
    for run in (ours, theirs):
        leaf = x.clone().requires_grad_()
        spikes, u = run(leaf)
        weight = torch.linspace(0.5, 1.5, spikes.numel(), dtype=torch.float64).reshape(spikes.shape)
        (spikes * weight).sum().backward()
        results.append((spikes.detach(), None if u is None else u.detach(), leaf.grad))
    (spikes, u, grad), (their_spikes, their_u, their_grad) = results
    assert 0.02 < spikes.mean() < 0.95
    assert torch.equal(spikes, their_spikes)
    if their_u is not None:
        torch.testing.assert_close(u, their_u, rtol=1e-12, atol=1e-12)
    least = 1e-12 + of_largest * float(their_grad.abs().max())
    torch.testing.assert_close(grad, their_grad, rtol=tolerance, atol=least)


@pytest.fixture(scope="module")
def snntorch():
    return pytest.importorskip("snntorch", reason="snnTorch is not installed")


@pytest.fixture(scope="module")
def jelly():
    return pytest.importorskip("spikingjelly.activation_based", reason="SpikingJelly is not installed")


@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
@pytest.mark.parametrize("surrogate", ["atan", "fast_sigmoid", "sigmoid"])
def test_leaky_of_snntorch(snntorch, reset, surrogate):
    from snntorch import surrogate as their_surrogates

    alpha = {"atan": 2.0, "fast_sigmoid": 25.0, "sigmoid": 25.0}[surrogate]
    spike_grad = getattr(their_surrogates, surrogate)(alpha)
    # Numbers that float32 holds exactly: snnTorch keeps its constants so.
    beta = torch.linspace(0.5, 0.95, WIDTH).double()
    theta = torch.linspace(0.8, 1.2, WIDTH).double()
    cell = snntorch.Leaky(beta=beta, threshold=theta, spike_grad=spike_grad, reset_mechanism=reset)

    def theirs(x):
        u, spikes = torch.zeros(BATCH, WIDTH, dtype=torch.float64), []
        for current in x.unbind(1):
            s, u = cell(current, u)
            spikes.append(s)
        return torch.stack(spikes, 1), u

    def ours(x):
        return lif_scan(x, beta, theta, reset=reset, surrogate=surrogate, alpha=alpha)

    compare(ours, theirs, currents(), OF_SNNTORCH)


def test_gradient_of_beta_as_in_snntorch(snntorch):
    grads = []
    for mine in (True, False):
        beta = torch.full((WIDTH,), 0.8, dtype=torch.float64, requires_grad=True)
        x = currents()
        if mine:
            spikes, _ = lif_scan(x, beta)
        else:
            cell = snntorch.Leaky(beta=0.8, learn_beta=True).double()
            cell.beta = torch.nn.Parameter(beta.detach().clone())
            u, parts = torch.zeros(BATCH, WIDTH, dtype=torch.float64), []
            for current in x.unbind(1):
                s, u = cell(current, u)
                parts.append(s)
            spikes, beta = torch.stack(parts, 1), cell.beta
        spikes.sum().backward()
        grads.append(beta.grad)
    torch.testing.assert_close(grads[0], grads[1], rtol=OF_SNNTORCH, atol=1e-12)


def test_recurrent_leaky_of_snntorch(snntorch):
    atan = snntorch.surrogate.atan(2.0)
    torch.manual_seed(0)  # of the recurrent map
    cell = snntorch.RLeaky(
        beta=0.9, all_to_all=True, linear_features=WIDTH, threshold=1.0, spike_grad=lambda v: atan(v).double()
    ).double()
    beta = float(cell.beta)  # as float32 holds it
    weight, bias = cell.recurrent.weight, cell.recurrent.bias

    def theirs(x):
        s = torch.zeros(BATCH, WIDTH, dtype=torch.float64)
        u, spikes = torch.zeros(BATCH, WIDTH, dtype=torch.float64), []
        for current in x.unbind(1):
            s, u = cell(current, s, u)
            spikes.append(s)
        return torch.stack(spikes, 1), u

    # As above, token after token: where large contributions cancel, the error is that of the largest.
    compare(lambda x: rlif_scan(x + bias, weight, beta), theirs, currents(), 1e-4, of_largest=1e-6)


@pytest.mark.parametrize("soft", [True, False])
@pytest.mark.parametrize("decay_input", [True, False])
@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("surrogate", ["ATan", "Sigmoid"])
def test_lif_node_of_spikingjelly(jelly, soft, decay_input, detach, surrogate):
    from spikingjelly.activation_based import functional, neuron
    from spikingjelly.activation_based import surrogate as their_surrogates

    tau = 3.0
    function, alpha, name = {
        "ATan": (their_surrogates.ATan(alpha=2.0), 2.0, "atan"),
        "Sigmoid": (their_surrogates.Sigmoid(alpha=4.0), 4.0, "sigmoid"),
    }[surrogate]
    node = neuron.LIFNode(
        tau=tau, decay_input=decay_input, v_threshold=1.0, v_reset=None if soft else 0.0, surrogate_function=function,
        detach_reset=detach, step_mode="m",
    )  # fmt: skip

    def theirs(x):
        functional.reset_net(node)
        return node(x.transpose(0, 1).contiguous()).transpose(0, 1), None

    def ours(x):
        return lif_scan(
            x, 1 - 1 / tau, 1.0, 1 / tau if decay_input else None, surrogate=name, alpha=alpha, detach_reset=detach,
            reset="subtract" if soft else "zero", reset_order="before_decay",
        )  # fmt: skip

    compare(ours, theirs, currents() * (3 if decay_input else 1))


def test_parametric_lif_node_of_spikingjelly(jelly):
    from spikingjelly.activation_based import functional, neuron

    node = neuron.ParametricLIFNode(init_tau=2.5, decay_input=True, v_reset=None, step_mode="m").double()
    functional.reset_net(node)
    x = 3 * currents()
    node(x.transpose(0, 1).contiguous()).sum().backward()
    w = node.w.detach().clone().requires_grad_()
    inverse = torch.sigmoid(w)  # 1 / tau
    lif_scan(
        x, (1 - inverse).expand(WIDTH), 1.0, inverse.expand(WIDTH), reset_order="before_decay", surrogate="sigmoid",
        alpha=4.0, detach_reset=False,
    )[0].sum().backward()  # fmt: skip
    torch.testing.assert_close(w.grad, node.w.grad, rtol=1e-9, atol=1e-12)


def test_the_two_orders_of_reset_differ():
    x = currents()
    after, _ = lif_scan(x, 0.9)
    before, _ = lif_scan(x, 0.9, reset_order="before_decay")
    assert 0.001 < (after != before).double().mean() < 0.3
    # With theta / beta taken off before the decay the second form is the first, as long as all have one threshold.
    spikes, u = [], torch.zeros(BATCH, WIDTH, dtype=torch.float64)
    s = torch.zeros_like(u)
    for current in x.unbind(1):
        u = 0.9 * (u - (1 / 0.9) * s) + current
        s = (u > 1).double()
        spikes.append(s)
    assert torch.equal(torch.stack(spikes, 1), after)
