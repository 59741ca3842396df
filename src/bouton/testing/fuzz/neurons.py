"""Random calls of the spiking neurons, and of the compiled functions of these and of the oscillating activation."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bouton.ops import wheel
from bouton.ops.lif import RESET_ORDERS, RESETS, SURROGATES, lif_reference, lif_scan, rlif_scan
from bouton.ops.oscillate import oscillate_reference
from bouton.testing.fuzz.call import Call, Results
from bouton.testing.fuzz.inputs import coefficient, laid_out, normal
from bouton.testing.fuzz.kernels import compiled, raw

# A potential that is closer to its threshold may fall either way in float32.
MARGIN = 1e-5


def exact_neurons(theta: Tensor, run: Callable[[Tensor], Results]) -> Results:
    """What the definition ``run`` gives; not a number if a slightly other threshold gives other spikes."""
    spikes, u = run(theta)
    if all(torch.equal(run(theta + shift)[0], spikes) for shift in (-MARGIN, MARGIN)):
        return spikes, u
    return torch.full_like(spikes, float("nan")), u


def _lif(rng: Random) -> Call:
    dtype = rng.choice([torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16])
    size = batch, tokens, width = (rng.randint(0, 3), rng.randint(0, 30), rng.choice([0, 1, 2, 5, 17, 40]))
    working = torch.float64 if dtype == torch.float64 else torch.float32
    recurrent = rng.random() < 0.4
    arguments: dict[str, Any] = {
        "x": laid_out(rng, normal(rng, *size, dtype=dtype)),
        "beta": coefficient(rng, 0.3, 1.0, (width,), working),
        "theta": coefficient(rng, 0.5, 1.5, (width,), working),
        "gain": None if rng.random() < 0.5 else coefficient(rng, 0.5, 1.5, (width,), working),
        "u0": None if rng.random() < 0.5 else laid_out(rng, normal(rng, batch, width)),
        "s0": None if rng.random() < 0.5 else (normal(rng, batch, width) > 1).float(),
        "starts": None if rng.random() < 0.5 else normal(rng, batch, tokens) > 1,
        "reset": rng.choice(RESETS),
        "reset_order": rng.choice(RESET_ORDERS),
        "surrogate": rng.choice(list(SURROGATES)),
        "alpha": rng.choice([None, 0.5, 3.0]),
        "detach_reset": rng.random() < 0.5,
        "backend": rng.choice(["auto", "torch", *(["rust"] if dtype != torch.float64 else [])]),
    }
    if recurrent:
        arguments["w_rec"] = laid_out(rng, 0.3 * normal(rng, width, width))

    def run(given: dict[str, Any]) -> Results:
        return (rlif_scan if recurrent else lif_scan)(**given)

    def exact(given: dict[str, Any]) -> Results:
        def full(x: Any) -> Tensor:
            return torch.as_tensor(x, dtype=working).double().expand(width)

        nothing = torch.zeros(batch, width).double()
        u, s = (nothing if given[name] is None else given[name].double() for name in ("u0", "s0"))
        gain, w_rec = given["gain"], given.get("w_rec")
        beta, gain = full(given["beta"]), None if gain is None else full(gain)
        options = {name: given[name] for name in ("reset", "reset_order", "surrogate", "detach_reset")}
        x, w_rec = given["x"].double(), None if w_rec is None else w_rec.double()

        def scan(theta: Tensor) -> Results:
            return lif_reference(x, beta, theta, gain, w_rec, u, s, given["starts"], alpha=2.0, **options)

        return exact_neurons(full(given["theta"]), scan)

    return Call("rlif_scan" if recurrent else "lif_scan", arguments, run, exact)


def _raw_lif_call(rng: Random) -> dict[str, Any]:
    batch, tokens, width = rng.randint(1, 3), rng.choice([1, 7, 8, 9, 30]), rng.choice([1, 3, 16, 33, 260])
    if rng.random() < 0.1:
        batch, tokens, width = (n * rng.randint(0, 1) for n in (batch, tokens, width))
    return {
        "x": normal(rng, batch, tokens, width).numpy(),
        "beta": normal(rng, width).sigmoid().numpy(),
        "theta": 0.5 + normal(rng, width).sigmoid().numpy(),
        "gain": 0.5 + normal(rng, width).sigmoid().numpy(),
        "u0": normal(rng, batch, width).numpy(),
        "s0": (normal(rng, batch, width) > 1).float().numpy(),
        "starts": None if rng.random() < 0.5 else (normal(rng, batch, tokens) > 1).numpy(),
        "w_rec": None if rng.random() < 0.5 else 0.1 * normal(rng, width, width).numpy(),
        "transposed": rng.random() < 0.5,
        "reset": rng.choice(["subtract", "subtract_before_decay", "zero", "none"]),
    }


def _kept(call: dict[str, Any]) -> tuple[int, int, int]:
    """Shape of the membrane potentials that the backward pass starts from."""
    batch, tokens, width = call["x"].shape
    return batch, max(0, tokens - 1) // wheel.kernels().LIF_CHUNK, width


def _raw_lif(rng: Random) -> Call:
    call, keep = _raw_lif_call(rng), rng.random() < 0.5
    currents = call["x"].shape if keep and call["w_rec"] is not None else (0, 0, 0)
    room = {
        "spikes": call["x"] if rng.random() < 0.1 else np.empty_like(call["x"]),  # an input cannot be an output
        "last": np.empty_like(call["u0"]),
        "kept": np.empty(_kept(call) if keep else (0, 0, 0), "float32"),
        "currents": np.empty(currents, "float32"),
    }
    room["last"].flags.writeable = rng.random() < 0.9

    def run(given: dict[str, Any]) -> Results:
        compiled("lif", *given.values())
        return [torch.from_numpy(given["room"][name]) for name in ("spikes", "last")]

    def exact(given: dict[str, Any]) -> Results:
        arrays = {name: torch.from_numpy(x) for name, x in given["call"].items() if isinstance(x, np.ndarray)}
        x = {name: array if name == "starts" else array.double() for name, array in arrays.items()}
        heard, reset = x.get("w_rec"), given["call"]["reset"]
        if heard is not None and given["call"]["transposed"]:
            heard = heard.T
        before = reset == "subtract_before_decay"
        options: dict[str, Any] = {"reset": "subtract" if before else reset, "reset_order": RESET_ORDERS[before]}
        options |= {"surrogate": "atan", "alpha": 2.0, "detach_reset": True}

        def scan(theta: Tensor) -> Results:
            return lif_reference(
                x["x"], x["beta"], theta, x["gain"], heard, x["u0"], x["s0"], x.get("starts"), **options
            )

        return exact_neurons(x["theta"], scan)

    arguments = {"call": call, "room": room, "threads": rng.randint(0, 3)}
    return Call("bouton_kernels.lif", arguments, run, exact, (ValueError, TypeError))


def _raw_lif_backward(rng: Random) -> Call:
    call = _raw_lif_call(rng)
    room = {name: np.empty_like(call[name]) for name in ("x", "beta", "theta", "gain", "u0", "s0")}
    of_map = call["w_rec"].shape if call["w_rec"] is not None and rng.random() < 0.5 else (0, 0)
    arguments = {
        "call": call,
        "spikes": (call["x"] > 1).astype("float32"),
        "kept": np.ones(_kept(call), "float32"),
        "grad_spikes": np.ones_like(call["x"]),
        "grad_last": np.ones_like(call["u0"]),
        "surrogate": rng.choice(list(SURROGATES)),
        "alpha": rng.choice([0.5, 2.0, 25.0]),
        "detach_reset": rng.random() < 0.5,
        "room": {**room, "w_rec": np.empty(of_map, "float32")},
        "threads": rng.randint(0, 3),
    }
    return raw("lif_backward", arguments, None)


def _raw_oscillate_call(rng: Random) -> dict[str, Any]:
    rows, width = rng.choice([0, 1, 3, 70]), rng.choice([0, 1, 5, 16, 300])
    return {
        "x": normal(rng, rows, width).numpy(),
        "omega": 3 * normal(rng, width).numpy(),
        "phi": normal(rng, width).numpy(),
        "baseline": None if rng.random() < 0.5 else normal(rng, width).numpy(),
    }


def _raw_oscillate(rng: Random) -> Call:
    call = _raw_oscillate_call(rng)
    y = call["x"] if rng.random() < 0.1 else np.empty_like(call["x"])  # an input cannot be an output

    def run(given: dict[str, Any]) -> Results:
        compiled("oscillate", *given.values())
        return [torch.from_numpy(given["y"])]

    def exact(given: dict[str, Any]) -> Results:
        call = given["call"]
        x, omega, phi = (torch.from_numpy(call[name]).double() for name in ("x", "omega", "phi"))
        baseline = None if call["baseline"] is None else torch.from_numpy(call["baseline"]).double()
        return (oscillate_reference(x, omega, phi, baseline),)

    arguments = {"call": call, "y": y, "threads": rng.randint(0, 3)}
    return Call("bouton_kernels.oscillate", arguments, run, exact, (ValueError, TypeError))


def _raw_oscillate_backward(rng: Random) -> Call:
    call = _raw_oscillate_call(rng)
    room = {name: np.empty_like(call[name]) for name in ("x", "omega", "phi")}
    arguments = {
        "call": call,
        "grad_y": np.ones_like(call["x"]),
        "room": {**room, "baseline": np.empty_like(call["phi"])},
        "threads": rng.randint(0, 3),
    }
    return raw("oscillate_backward", arguments, None)


MAKES: tuple[Callable[[Random], Call], ...] = (_lif, _lif)
COMPILED: tuple[Callable[[Random], Call], ...] = (
    _raw_lif,
    _raw_lif_backward,
    _raw_oscillate,
    _raw_oscillate_backward,
)
