"""Random calls of the public functions of ``bouton.ops``."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import torch
from torch import Tensor

from bouton.ops.fast_weights import fast_weights, fast_weights_reference
from bouton.ops.fatigue_attention import Kinetics, fatigue_attention
from bouton.ops.fatigue_attention import reference as fatigue_reference
from bouton.ops.latch import Rates, latch, latch_reference
from bouton.ops.lateral_inhibition import lateral_inhibition, lateral_inhibition_reference
from bouton.ops.oscillate import oscillate, oscillate_reference
from bouton.ops.scan import affine_scan, max_affine_scan, scan_reference
from bouton.ops.simplicial_attention import simplicial_attention, simplicial_attention_reference
from bouton.testing.fuzz.call import TOLERANCE, Call, Results
from bouton.testing.fuzz.inputs import coefficient, laid_out, normal


def _scan(rng: Random) -> Call:
    dtype = rng.choice([torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16])
    size = (rng.randint(0, 3), rng.randint(0, 40), rng.choice([0, 1, 2, 5, 17, 260]))
    bounded = rng.random() < 0.5
    arguments: dict[str, Any] = {
        "a": coefficient(rng, -0.4, 1.05, size, dtype),
        "x": laid_out(rng, normal(rng, *size, dtype=dtype)),
        "state": None if rng.random() < 0.5 else laid_out(rng, normal(rng, size[0], size[2])),
        "starts": None if rng.random() < 0.5 else normal(rng, size[0], size[1]) > 1,
        "backend": rng.choice(["auto", "torch", *(["rust"] if dtype != torch.float64 else [])]),
    }
    if bounded:
        arguments["floor"] = coefficient(rng, -1.0, 1.0, size, dtype)

    def run(given: dict[str, Any]) -> Results:
        return (max_affine_scan if bounded else affine_scan)(**given)

    def exact(given: dict[str, Any]) -> Results:
        working = torch.float64 if dtype == torch.float64 else torch.float32  # numbers are rounded to it first

        def full(x: Any) -> Tensor:
            return torch.as_tensor(x, dtype=working).double().expand(size)

        x, state = given["x"].double(), given["state"]
        state = torch.zeros(size[0], size[2]).double() if state is None else state.double()
        floor = full(given["floor"]) if bounded else None
        return scan_reference(full(given["a"]), x, floor, state, given["starts"])

    return Call("max_affine_scan" if bounded else "affine_scan", arguments, run, exact)


def some_kinetics(rng: Random, heads: int) -> dict[str, Tensor]:
    typical = {"rho_c": 0.85, "alpha_ca": 0.55, "k_d": 0.7, "s": 3.0, "b": -0.8, "kappa": 1.0, "rho_r": 0.9}
    typical |= {"r_max": 1.0, "lam": rng.choice([1.0, 0.5]), "eps": 1e-2}
    return {name: torch.full((heads,), x * rng.uniform(0.9, 1.0 if x == 1.0 else 1.1)) for name, x in typical.items()}


def _fatigue(rng: Random) -> Call:
    dtype = rng.choice([torch.float32, torch.float32, torch.float64, torch.bfloat16])
    batch, kv_heads, group, dim = rng.randint(1, 2), rng.randint(1, 2), rng.randint(1, 2), rng.randint(1, 20)
    tq, old = rng.choice([0, 1, 1, 3, 17, 70]), rng.choice([0, 0, 1, 30])
    heads, tk = kv_heads * group, tq + old
    stateful = old > 0 and rng.random() < 0.7
    segmented = rng.random() < 0.3
    ids = (normal(rng, batch, tk) > 1).cumsum(1)
    arguments: dict[str, Any] = {
        "q": laid_out(rng, normal(rng, batch, heads, tq, dim, dtype=dtype)),
        "k": laid_out(rng, normal(rng, batch, kv_heads, tk, dim, dtype=dtype)),
        "v": laid_out(rng, normal(rng, batch, kv_heads, tk, dim, dtype=dtype)),
        "kinetics": some_kinetics(rng, heads),
        "state": {name: normal(rng, batch, heads, old).sigmoid() for name in ("calcium", "pool")} if stateful else None,
        "rule": rng.choice(fatigue_reference.RULES),
        "release": rng.choice(fatigue_reference.RELEASES),
        "segments_q": ids[:, old:] if segmented else None,
        "segments_k": ids if segmented else None,
        "window": rng.choice([None, None, 1, 9]),
        "backend": rng.choice(["auto", "torch", *(["rust"] if dtype != torch.float64 else [])]),
    }

    def run(given: dict[str, Any]) -> Results:
        kinetics = given["kinetics"]
        kinetics = Kinetics(**kinetics) if isinstance(kinetics, dict) else kinetics
        out, state = fatigue_attention(**{**given, "kinetics": kinetics})
        return out, state["calcium"], state["pool"]

    def exact(given: dict[str, Any]) -> Results:
        kinetics = Kinetics(*(x.double() for x in given["kinetics"].values()))
        born = torch.zeros(batch, heads, tq if stateful else tk).double()
        calcium, pool = born, born + kinetics.r_max[:, None]
        if stateful:
            calcium = torch.cat((given["state"]["calcium"].double(), calcium), -1)
            pool = torch.cat((given["state"]["pool"].double(), pool), -1)
        kept = {name: given[name] for name in ("rule", "release", "segments_q", "segments_k", "window")}
        q, k, v = (given[name].double() for name in "qkv")
        return fatigue_reference.forward(q, k, v, kinetics, calcium, pool, **kept)

    return Call("fatigue_attention", arguments, run, exact)


def _fast_weights(rng: Random) -> Call:
    dtype = rng.choice([torch.float32, torch.float64, torch.bfloat16])
    batch, heads, tokens = rng.randint(1, 2), rng.randint(1, 3), rng.choice([1, 2, 9, 40])
    rank, width = rng.randint(1, 6), rng.randint(1, 7)
    per_token = (batch, heads, tokens)
    arguments: dict[str, Any] = {
        "q": laid_out(rng, normal(rng, *per_token, rank, dtype=dtype)),
        "k": torch.nn.functional.normalize(normal(rng, *per_token, rank), dim=-1).to(dtype),
        "v": laid_out(rng, normal(rng, *per_token, width, dtype=dtype)),
        "eta": normal(rng, *per_token).sigmoid(),
        "rho_f": 0.5 + 0.5 * normal(rng, heads).sigmoid(),
        "rho_s": 0.5 + 0.5 * normal(rng, heads).sigmoid(),
        "eta_s": 0.1 * normal(rng, heads).sigmoid(),
        "rule": rng.choice(["hebb", "oja", "delta"]),
        "starts": None if rng.random() < 0.5 else normal(rng, batch, tokens) > 1,
        "chunk": rng.choice([1, 4, 16, 64]),
        "backend": rng.choice(["auto", "torch"]),
    }

    def run(given: dict[str, Any]) -> Results:
        read, state = fast_weights(**given)
        return read, state["fast"], state["slow"]

    def exact(given: dict[str, Any]) -> Results:
        floats = ("q", "k", "v", "eta", "rho_f", "rho_s", "eta_s")
        exactly = {name: given[name].double() for name in floats}
        read, state = fast_weights_reference(**exactly, rule=given["rule"], starts=given["starts"])
        return read, state["fast"], state["slow"]

    return Call("fast_weights", arguments, run, exact)


def _oscillate(rng: Random) -> Call:
    dtype = rng.choice(list(TOLERANCE))
    shape = tuple(rng.randint(0, 5) for _ in range(rng.randint(1, 4)))
    arguments: dict[str, Any] = {"x": laid_out(rng, normal(rng, *shape, dtype=dtype))}
    arguments |= {name: normal(rng, *shape[-1:]) for name in ("omega", "phi", "baseline")}

    def exact(given: dict[str, Any]) -> Results:
        return (oscillate_reference(**{name: x.double() for name, x in given.items()}),)

    return Call("oscillate", arguments, lambda given: (oscillate(**given),), exact)


def _lateral_inhibition(rng: Random) -> Call:
    dtype = rng.choice([torch.float32, torch.float64, torch.bfloat16])
    shape = (rng.randint(1, 2), rng.randint(1, 2), rng.randint(1, 30), rng.randint(1, 5))
    arguments: dict[str, Any] = {
        "x": laid_out(rng, normal(rng, *shape, dtype=dtype)),
        "strength": rng.uniform(-1, 1),
        "window": rng.randint(1, 40),
        "starts": None if rng.random() < 0.5 else normal(rng, shape[0], shape[2]) > 1,
    }

    def run(given: dict[str, Any]) -> Results:
        return (lateral_inhibition(**given)[0],)

    def exact(given: dict[str, Any]) -> Results:
        return (lateral_inhibition_reference(given["x"].double(), *list(given.values())[1:])[0],)

    return Call("lateral_inhibition", arguments, run, exact)


def _latch(rng: Random) -> Call:
    dtype = rng.choice([torch.float32, torch.float64, torch.bfloat16])
    size = batch, tokens, heads = rng.randint(1, 3), rng.randint(1, 30), rng.randint(1, 4)
    arguments: dict[str, Any] = {
        "calcium": laid_out(rng, normal(rng, *size).abs().to(dtype)),
        "m": normal(rng, batch, heads).sigmoid(),
        "p": 0.3 + 0.7 * normal(rng, batch, heads).sigmoid(),
        "starts": None if rng.random() < 0.5 else normal(rng, batch, tokens) > 1,
    }
    rates = Rates(n=rng.uniform(1, 6), gain=rng.uniform(1, 6))

    def run(given: dict[str, Any]) -> Results:
        return latch(given["calcium"], rates, (given["m"], given["p"]), given["starts"])

    def exact(given: dict[str, Any]) -> Results:
        calcium, m, p = (given[name].double() for name in ("calcium", "m", "p"))
        return latch_reference(calcium, rates, m, p, given["starts"])

    return Call("latch", arguments, run, exact)


def _simplicial_attention(rng: Random) -> Call:
    dtype = rng.choice([torch.float32, torch.float64, torch.bfloat16])
    kv_heads, group = rng.randint(1, 2), rng.randint(1, 2)
    batch, tokens, dim = rng.randint(1, 2), rng.randint(1, 9), rng.randint(1, 5)
    w1, w2 = rng.randint(1, 11), rng.randint(1, 5)
    shape = (batch, kv_heads, tokens, dim)
    arguments: dict[str, Any] = {
        "q": laid_out(rng, normal(rng, batch, kv_heads * group, tokens, dim, dtype=dtype)),
        **{name: laid_out(rng, normal(rng, *shape, dtype=dtype)) for name in ("k1", "v1", "k2", "v2")},
        "w1": w1,
        "w2": w2,
        "starts": None if rng.random() < 0.5 else normal(rng, batch, tokens) > 1,
        "bias1": None if rng.random() < 0.5 else normal(rng, batch, 1, tokens, w1),
        "bias2": None if rng.random() < 0.5 else normal(rng, 1, kv_heads * group, tokens, w2),
    }

    def run(given: dict[str, Any]) -> Results:
        return (simplicial_attention(**given)[0],)

    def exact(given: dict[str, Any]) -> Results:
        exactly = {name: x.double() if name[0] in "qkv" else x for name, x in given.items()}
        return (simplicial_attention_reference(**exactly)[0],)

    return Call("simplicial_attention", arguments, run, exact)


MAKES: tuple[Callable[[Random], Call], ...] = (
    _scan,
    _scan,
    _fatigue,
    _fatigue,
    _fast_weights,
    _oscillate,
    _latch,
    _lateral_inhibition,
    _simplicial_attention,
)
