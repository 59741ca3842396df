"""The gate: what an execution computes, against the float64 definition, before anything is timed."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from bouton.ops.benchmarks.case import Case, Inputs, MakeInputs, Run, generator

# bfloat16 keeps 8 bits of mantissa. Gradients of constants sum over all pairs with cancellation, where the rounding of
# every output stays: there, where float32 is allowed much too, the gate tells gross faults only.
BFLOAT16_LIMIT, BFLOAT16_LIMIT_OF_SUMS, MUCH = 2e-2, 0.5, 1e-4


def on(inputs: Inputs, device: str) -> Inputs:
    """The inputs on a device."""
    return {name: x.to(device) for name, x in inputs.items()}


def limit(case: Case, name: str, dtype: torch.dtype) -> float:
    """Largest relative error that the gate lets pass."""
    allowed = case.limits.get(name, case.limits["*"])
    if dtype == torch.float32:
        return allowed
    return BFLOAT16_LIMIT_OF_SUMS if allowed > MUCH else BFLOAT16_LIMIT


def errors(case: Case, run: Run, device: str, dtype: torch.dtype) -> dict[str, float]:
    """Relative error (Euclidean norm) of every output and of the gradient of every input; the worst of all problems.

    An input of bools or integers has no gradient.

    Outputs are compared with and without recording of gradients: these may be different kernels.
    """
    worst: dict[str, float] = {}
    for problem in case.problems:
        with torch.no_grad():
            silent = dict(zip(case.outputs, run(on(problem(dtype), device)), strict=True))
            if not case.trained:  # an op that has no gradients
                exact = case.exact({name: x.double() for name, x in problem(dtype).items()})
                for name, value in zip(case.outputs, exact, strict=True):
                    worst[name] = _worse(worst.get(name, 0.0), _relative(silent[name], value))
                continue
        expected = _expected(case.exact, case.outputs, problem, dtype)
        recorded = results(run, case.outputs, on(problem(dtype), device))
        for actual in (silent, recorded):
            for name, value in actual.items():
                worst[name] = _worse(worst.get(name, 0.0), _relative(value, expected[name]))
    return worst


def wrong(case: Case, found: dict[str, float], dtype: torch.dtype) -> dict[str, float]:
    """The errors beyond their limits; one that is not a number is beyond any."""
    return {name: error for name, error in found.items() if not error <= limit(case, name, dtype)}


def results(run: Run, outputs: tuple[str, ...], inputs: Inputs) -> dict[str, Tensor]:
    """Outputs, and as ``d<name>`` the gradients of a fixed random function of all of them in every input."""
    leaves = {name: x.clone().requires_grad_(x.is_floating_point()) for name, x in inputs.items()}
    values = run(dict(leaves))
    bars = [torch.randn(x.shape, generator=generator(1 + i)) for i, x in enumerate(values)]
    total = sum(((x.double() * bar.to(x.device)).sum() for x, bar in zip(values, bars, strict=True)), torch.zeros(()))
    assert isinstance(total, Tensor)
    varied = {name: x for name, x in leaves.items() if x.requires_grad}
    grads = torch.autograd.grad(total, list(varied.values()), materialize_grads=True)
    return {
        **{name: x.detach() for name, x in zip(outputs, values, strict=True)},
        **{f"d{name}": grad for name, grad in zip(varied, grads, strict=True)},
    }


@cache
def _expected(exact: Run, outputs: tuple[str, ...], problem: MakeInputs, dtype: torch.dtype) -> dict[str, Tensor]:
    inputs = problem(dtype)
    return results(exact, outputs, {n: x.double() if x.is_floating_point() else x for n, x in inputs.items()})


def _relative(actual: Tensor, expected: Tensor) -> float:
    if actual.shape != expected.shape:
        return float("inf")
    error, size = float((actual.detach().cpu().double() - expected).norm()), float(expected.norm())
    if size == 0.0:  # a gradient that is nothing: no error is small beside it
        return 0.0 if error == 0.0 else float("inf")
    return error / size


def _worse(a: float, b: float) -> float:
    return b if b != b else max(a, b)  # a NaN stays
