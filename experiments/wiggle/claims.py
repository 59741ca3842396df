"""Two claims about oscillating units, with controls: one unit solves XOR; modular addition is easier with them.

    python experiments/wiggle/claims.py            # 512 and 32 seeds, about two minutes on one core

All seeds are trained at once: every parameter has the seed as its first axis.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from bouton.ops.oscillate import oscillate_reference

Activation = Callable[[Tensor, list[Tensor]], Tensor]


def oscillating(x: Tensor, own: list[Tensor]) -> Tensor:
    """sin(omega x + phi) tanh(x) with omega and phi (seeds, units)."""
    omega, phi = own
    return oscillate_reference(x, omega.unsqueeze(1), phi.unsqueeze(1))


# Name -> activation of x (seeds, points, units) and its own parameters.
ACTIVATIONS: dict[str, Activation] = {
    "oscillating": oscillating,
    "gelu": lambda x, own: F.gelu(x),
    "abs": lambda x, own: x.abs(),
    "square": lambda x, own: x.square(),
    "relu": lambda x, own: F.relu(x),
    "tanh": lambda x, own: torch.tanh(x),
}


def _own(name: str, seeds: int, units: int, draw: torch.Generator) -> list[Tensor]:
    """The parameters of an activation, drawn as the mechanism ``oscillate`` draws them."""
    if name != "oscillating":
        return []
    omega, phi = (0.1 * torch.randn(seeds, units, generator=draw) for _ in range(2))
    return [(1 + omega).requires_grad_(), phi.requires_grad_()]


def xor(name: str, seeds: int, steps: int = 2000) -> float:
    """Share of the initialisations from which one unit with an affine readout gets all four points right."""
    draw = torch.Generator().manual_seed(0)
    x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    y = torch.tensor([0.0, 1.0, 1.0, 0.0]).expand(seeds, 4)
    w = (2 * torch.randn(seeds, 2, 1, generator=draw)).requires_grad_()
    b = torch.zeros(seeds, 1, 1, requires_grad=True)
    a = torch.randn(seeds, 1, 1, generator=draw).requires_grad_()
    c = torch.zeros(seeds, 1, requires_grad=True)
    own = _own(name, seeds, 1, draw)
    optimizer = torch.optim.Adam([w, b, a, c, *own], lr=0.05)

    def logits() -> Tensor:
        hidden = ACTIVATIONS[name](x @ w + b, own)
        return (hidden @ a).squeeze(2) + c

    for _ in range(steps):
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(logits(), y, reduction="sum").backward()
        optimizer.step()
    with torch.no_grad():
        right = ((logits() > 0) == (y > 0.5)).all(dim=1)
    return float(right.float().mean())


def modular(name: str, seeds: int, *, held_out: bool, modulus: int = 5, width: int = 32, steps: int = 1500) -> Tensor:
    """Mean squared error (seeds,) of a net of two hidden layers for (a + b) mod m over m, a and b digits over 9.

    Args:
        held_out: learn four fifths of all 100 pairs and be tested on the rest; else be tested on what was learned.
    """
    draw = torch.Generator().manual_seed(1)
    digits = torch.cartesian_prod(torch.arange(10), torch.arange(10))
    x, y = digits / 9.0, (digits.sum(dim=1) % modulus) / modulus
    order = torch.stack([torch.randperm(100, generator=draw) for _ in range(seeds)])
    train, test = (order[:, :80], order[:, 80:]) if held_out else (order, order)
    sizes = [2, width, width, 1]
    weights, biases, owns = [], [], []
    for fan_in, fan_out in itertools.pairwise(sizes):
        weights.append(((2 / fan_in) ** 0.5 * torch.randn(seeds, fan_in, fan_out, generator=draw)).requires_grad_())
        biases.append(torch.zeros(seeds, 1, fan_out, requires_grad=True))
    for _ in range(2):
        owns.append(_own(name, seeds, width, draw))
    parameters = [*weights, *biases, *(p for own in owns for p in own)]
    optimizer = torch.optim.Adam(parameters, lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def output(points: Tensor) -> Tensor:
        hidden = x[points]
        for weight, bias, own in zip(weights, biases, owns, strict=False):
            hidden = ACTIVATIONS[name](hidden @ weight + bias, own)
        return (hidden @ weights[-1] + biases[-1]).squeeze(2)

    for _ in range(steps):
        optimizer.zero_grad()
        (output(train) - y[train]).square().mean(dim=1).sum().backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return (output(test) - y[test]).square().mean(dim=1)


def main() -> None:
    """Run both, print a table, write JSON and a picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--xor-seeds", type=int, default=512)
    parser.add_argument("--modular-seeds", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    solved = {name: xor(name, options.xor_seeds) for name in ACTIVATIONS}
    names = ("oscillating", "gelu", "relu", "tanh")
    errors = {
        what: {name: modular(name, options.modular_seeds, held_out=what == "held out") for name in names}
        for what in ("learned", "held out")
    }
    print(f"XOR by one unit, share of {options.xor_seeds} initialisations:")
    for name, share in solved.items():
        print(f"  {name:12} {100 * share:5.1f} %")
    for what, by_name in errors.items():
        print(f"(a + b) mod 5, mean squared error on {what} pairs over {options.modular_seeds} seeds (variance 0.08):")
        for name, values in by_name.items():
            print(f"  {name:12} median {values.median():.6f}, mean {values.mean():.6f}")
    options.out.mkdir(parents=True, exist_ok=True)
    record = {
        "xor": {"seeds": options.xor_seeds, "solved": solved},
        "modular": {what: {n: v.tolist() for n, v in by_name.items()} for what, by_name in errors.items()},
        "machine": {"processor": platform.machine(), "torch": torch.__version__},
    }
    (options.out / "claims.json").write_text(json.dumps(record, indent=1) + "\n")
    _draw(solved, errors, options.out / "claims.png")


def _draw(solved: dict[str, float], errors: dict[str, dict[str, Tensor]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.2), layout="constrained")
    first, *others = figure.subplots(1, 3)
    first.bar(list(solved), [100 * share for share in solved.values()], color="tab:blue")
    first.set_ylabel("initialisations that solve XOR (%)")
    first.tick_params(axis="x", rotation=30)
    for axes, (what, by_name) in zip(others, errors.items(), strict=True):
        axes.boxplot([values.numpy() for values in by_name.values()], tick_labels=list(by_name))
        axes.axhline(0.08, color="grey", linestyle=":", label="variance of the labels")
        axes.set_yscale("log")
        axes.set_title(f"(a + b) mod 5: {what} pairs")
        axes.set_ylabel("mean squared error")
        axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
