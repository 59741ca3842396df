"""Random calls of the compiled functions, past the public ones that check their arguments."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import torch

from bouton.ops import wheel
from bouton.ops.fast_weights import fast_weights_reference
from bouton.ops.fatigue_attention import reference as fatigue_reference
from bouton.ops.fatigue_attention.rust import stored_numbers
from bouton.ops.scan import scan_reference
from bouton.testing.fuzz.call import Call, Results
from bouton.testing.fuzz.inputs import normal
from bouton.testing.fuzz.ops import some_kinetics


def compiled(name: str, *arguments: Any) -> Results:
    found = getattr(wheel.kernels(), name)(*arguments)
    found = found if isinstance(found, (tuple, list)) else (found,)
    return [torch.from_numpy(x) for x in found if x is not None]


def raw(name: str, arguments: dict[str, Any], exact: Callable[[dict[str, Any]], Results] | None) -> Call:
    def run(given: dict[str, Any]) -> Results:
        return compiled(name, *given.values())

    return Call(f"bouton_kernels.{name}", arguments, run, exact, (ValueError, TypeError))


def _raw_scan_arguments(rng: Random) -> dict[str, Any]:
    size = (rng.randint(0, 3), rng.randint(0, 30), rng.choice([0, 1, 3, 20, 260]))
    a, floor = (tuple(1 if rng.random() < 0.4 else n for n in size) for _ in range(2))
    return {
        "x": normal(rng, *size).numpy(),
        "a": normal(rng, *a).sigmoid().numpy(),
        "state": normal(rng, size[0], size[2]).numpy(),
        "starts": None if rng.random() < 0.5 else (normal(rng, size[0], size[1]) > 1).numpy(),
        "floor": None if rng.random() < 0.5 else normal(rng, *floor).numpy(),
    }


def _raw_scan(rng: Random) -> Call:
    def exact(given: dict[str, Any]) -> Results:
        numbers: dict[str, Any] = {
            name: None if x is None else torch.from_numpy(x) for name, x in list(given.items())[:5]
        }
        double = {name: x if x is None or name == "starts" else x.double() for name, x in numbers.items()}
        return (scan_reference(**double)[0],)

    return raw("scan", _raw_scan_arguments(rng) | {"threads": rng.randint(0, 3)}, exact)


def _raw_scan_backward(rng: Random) -> Call:
    given = _raw_scan_arguments(rng)
    y = given.pop("x")
    grads = {"grad_y": np.ones_like(y), "grad_last": np.ones_like(given["state"]), "y": y}
    rest = {"want_a": rng.random() < 0.5, "want_floor": rng.random() < 0.5, "threads": rng.randint(0, 3)}
    return raw("scan_backward", grads | given | rest, None)


def _raw_fatigue_call(rng: Random) -> dict[str, Any]:
    batch, kv_heads, group, dim = rng.randint(1, 2), rng.randint(1, 2), rng.randint(1, 2), rng.randint(1, 20)
    tq, old = rng.choice([1, 3, 17, 70]), rng.choice([0, 30])
    heads, tk = kv_heads * group, tq + old
    fresh = rng.random() < 0.5
    old_state = rng.random() < 0.5
    of_state = old + rng.choice([0, 5]) if old_state else tk
    return {
        "q": normal(rng, batch, heads, tq, dim).numpy(),
        "k": normal(rng, batch, kv_heads, tk, dim).numpy(),
        "v": normal(rng, batch, kv_heads, tk, dim).numpy(),
        "kinetics": torch.stack(list(some_kinetics(rng, heads).values())).numpy(),
        "calcium": np.zeros((batch, heads, of_state), "float32"),
        "pool": np.ones((batch, heads, of_state), "float32"),
        "rule": rng.choice(fatigue_reference.RULES),
        "release": rng.choice([*fatigue_reference.RELEASES, "off"]),
        "segments_q": None if fresh else np.zeros((batch, tq), "int64"),
        "segments_k": None if fresh else np.zeros((batch, tk), "int64"),
        "window": rng.choice([None, 1, 9, 2**63]),
        "old_state": old_state,
    }


def _raw_fatigue(rng: Random) -> Call:
    call, keep = _raw_fatigue_call(rng), rng.random() < 0.5
    (batch, heads, tq, _), tk = call["q"].shape, call["k"].shape[2]
    stored = stored_numbers(tq, tk) if keep and call["release"] != "off" else 0
    room = {
        "out": call["q"] if rng.random() < 0.1 else np.empty_like(call["q"]),  # an input cannot be an output
        "calcium": np.empty((batch, heads, tk), "float32"),
        "pool": np.empty((batch, heads, tk), "float32"),
        "total": np.empty((batch, heads, tq), "float32"),
        "boundaries": np.empty(batch * heads * stored, "float32"),
    }
    room["total"].flags.writeable = rng.random() < 0.9
    arguments = {"call": call, "room": room, "keep": keep, "threads": rng.randint(0, 3)}
    return raw("fatigue_attention", arguments, None)


def _raw_fatigue_backward(rng: Random) -> Call:
    call = _raw_fatigue_call(rng)
    batch, heads, tq, _ = call["q"].shape
    tk = call["k"].shape[2]
    stored = 0 if call["release"] == "off" else stored_numbers(tq, tk)
    arguments = {
        "call": call,
        "out": np.ones_like(call["q"]),
        "total": np.ones((batch, heads, tq), "float32"),
        "boundaries": np.ones(batch * heads * stored, "float32"),
        "grad_out": np.ones_like(call["q"]),
        "grad_calcium": np.ones((batch, heads, tk), "float32"),
        "grad_pool": np.ones((batch, heads, tk), "float32"),
        "room": {
            **{name: np.empty_like(call[name]) for name in ("q", "k", "v", "kinetics")},
            **{name: np.empty((batch, heads, tk), "float32") for name in ("calcium", "pool")},
        },
        "learn": rng.random() < 0.5,
        "threads": rng.randint(0, 3),
    }
    return raw("fatigue_attention_backward", arguments, None)


def _raw_fast_weights_call(rng: Random) -> dict[str, Any]:
    batch, heads = rng.randint(1, 2), rng.randint(1, 2)
    tokens, rank, dv = rng.choice([1, 16, 40, 70]), rng.choice([1, 5, 16]), rng.choice([1, 20, 33])
    if rng.random() < 0.1:
        tokens, rank, dv = (n * rng.randint(0, 1) for n in (tokens, rank, dv))
    slow = rng.random() < 0.5
    return {
        "rule": rng.choice(["hebb", "oja", "delta"]),
        "q": normal(rng, batch, tokens, heads, rank).numpy(),
        "k": (normal(rng, batch, tokens, heads, rank) / max(rank, 1) ** 0.5).numpy(),
        "v": normal(rng, batch, tokens, heads, dv).numpy(),
        "eta": np.full((batch, tokens, heads), 0.1, "float32"),
        "gate": None if rng.random() < 0.5 else np.full((batch, tokens, heads), 0.7, "float32"),
        "rates": np.full((3, heads), 0.9, "float32"),
        "fast": normal(rng, batch, heads, rank, dv).numpy(),
        "slow": normal(rng, batch, heads, rank, dv).numpy() if slow else None,
        "starts": None if rng.random() < 0.5 else (normal(rng, batch, tokens) > 1).numpy().view("uint8"),
    }


def _raw_fast_weights(rng: Random) -> Call:
    def exact(given: dict[str, Any]) -> Results:
        call = given["call"]
        x = {name: torch.from_numpy(y) for name, y in call.items() if isinstance(y, np.ndarray)}
        rows = {name: x[name].double().transpose(1, 2) for name in ("q", "k", "v", "eta", "gate") if name in x}
        rho_f, rho_s, eta_s = x["rates"].double()
        state = {"fast": x["fast"].double(), "slow": x["slow" if "slow" in x else "fast"].double()}
        if "slow" not in x:  # there is no S
            state["slow"], eta_s = torch.zeros_like(state["fast"]), torch.zeros_like(eta_s)
        starts = x["starts"].bool() if "starts" in x else None
        rates = {"rho_f": rho_f, "rho_s": rho_s, "eta_s": eta_s}
        read, after = fast_weights_reference(**rows, **rates, rule=call["rule"], state=state, starts=starts)
        found = [read.transpose(1, 2).flatten(), after["fast"].flatten()]
        return [*found, after["slow"].flatten()] if "slow" in x else found

    def run(given: dict[str, Any]) -> Results:
        read, fast, slow, _ = compiled("fast_weights", *given.values())
        return [read, fast, slow] if slow.numel() else [read, fast]

    arguments = {"call": _raw_fast_weights_call(rng), "keep": rng.random() < 0.5, "threads": rng.randint(0, 3)}
    return Call("bouton_kernels.fast_weights", arguments, run, exact, (ValueError, TypeError))


def _raw_fast_weights_backward(rng: Random) -> Call:
    call = _raw_fast_weights_call(rng)
    kept: Any = np.zeros(0, "float32")
    with contextlib.suppress(ValueError):  # an empty call is refused here as it will be there
        kept = wheel.kernels().fast_weights(call, True, 1)[3]
    arguments = {
        "call": call,
        "boundaries": kept,
        "grad_read": np.ones_like(call["v"]),
        "grad_fast": np.ones_like(call["fast"]),
        "grad_slow": None if call["slow"] is None else np.ones_like(call["slow"]),
        "threads": rng.randint(0, 3),
    }
    return raw("fast_weights_backward", arguments, None)


MAKES: tuple[Callable[[Random], Call], ...] = (
    _raw_scan,
    _raw_scan_backward,
    _raw_fatigue,
    _raw_fatigue_backward,
    _raw_fast_weights,
    _raw_fast_weights_backward,
)
