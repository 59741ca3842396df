"""Random calls of the ops and of the compiled functions, many of them wrong: a right answer or an exception, no crash.

Everything is drawn from one :class:`random.Random`, so a call is known by its seed, and hypothesis can drive it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bouton.errors import KernelError
from bouton.ops import wheel
from bouton.ops.fast_weights import fast_weights, fast_weights_reference
from bouton.ops.fatigue_attention import Kinetics, fatigue_attention
from bouton.ops.fatigue_attention import reference as fatigue_reference
from bouton.ops.fatigue_attention.rust import stored_numbers
from bouton.ops.lateral_inhibition import lateral_inhibition, lateral_inhibition_reference
from bouton.ops.oscillate import oscillate, oscillate_reference
from bouton.ops.scan import affine_scan, max_affine_scan, scan_reference

Results = Sequence[Tensor]
Make = Callable[[Random], "Call"]
FUNCTION_ERRORS: tuple[type[Exception], ...] = (KernelError, ValueError, TypeError)
# What torch itself says to a tensor of a size that no memory holds, or to an object that is no tensor.
TORCH_ERRORS: tuple[type[Exception], ...] = (RuntimeError, AttributeError, OverflowError)
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}


class WrongAnswerError(Exception):
    """A result that differs from the definition, or an exception of a kind that must not come."""


@dataclass
class Call:
    """One call: what it does, and what the definition gives in float64 (raises where the call is wrong)."""

    name: str
    arguments: dict[str, Any]
    run: Callable[[dict[str, Any]], Results]
    exact: Callable[[dict[str, Any]], Results] | None
    errors: tuple[type[Exception], ...] = FUNCTION_ERRORS
    broken: bool = False  # an argument was made wrong, so that no answer is compared
    alien: bool = False  # wrong in a way that torch may refuse in its own words

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{key}={_told(x)}' for key, x in self.arguments.items())})"


def _told(x: Any) -> str:
    if isinstance(x, Tensor):
        return f"Tensor{tuple(x.shape)} {x.dtype} strides {x.stride()}"
    if isinstance(x, np.ndarray):
        return f"array{x.shape} {x.dtype} strides {x.strides}"
    if isinstance(x, dict):
        return "{" + ", ".join(f"{key}: {_told(value)}" for key, value in x.items()) + "}"
    if isinstance(x, (tuple, list)):
        return "(" + ", ".join(map(_told, x)) + ")"
    return repr(x)


def make_call(rng: Random) -> Call:
    """A random call of a random function."""
    makes: list[Make] = [_scan, _scan, _fatigue, _fatigue, _fast_weights, _oscillate, _lateral_inhibition]
    if wheel.why_not("scan") is None:
        makes += [_raw_scan, _raw_scan_backward, _raw_fatigue, _raw_fatigue_backward, _raw_fast_weights]
    call = rng.choice(makes)(rng)
    if rng.random() < 0.5:
        _break(call, rng)
    return call


def attempt(call: Call) -> str:
    """Make the call: "right", "answer" (nothing to compare with), or the name of the exception.

    Raises:
        WrongAnswerError: the answer is wrong, or an exception came that must not come.
    """
    try:
        found = list(call.run(call.arguments))
    except Exception as error:
        expected = (*call.errors, *TORCH_ERRORS) if call.alien else call.errors
        first = str(error).splitlines()
        if not isinstance(error, expected) or not first:
            raise WrongAnswerError(f"{call}\n  raised {type(error).__name__}: {error}") from error
        if isinstance(error, KernelError) and len(first) > 1:
            raise WrongAnswerError(f"{call}\n  said more than one line: {error}") from error
        return type(error).__name__
    except BaseException as error:  # pyo3's PanicException is no Exception
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        raise WrongAnswerError(f"{call}\n  panicked: {error}") from error
    if call.broken or call.exact is None:
        return "answer"
    exact = list(call.exact(call.arguments))
    for i, (got, want) in enumerate(zip(found, exact, strict=True)):
        if got.shape != want.shape:
            raise WrongAnswerError(f"{call}\n  result {i} has shape {tuple(got.shape)}, not {tuple(want.shape)}")
        if not want.isfinite().all():
            return "answer"
        distance = (got.double() - want).norm() / want.norm().clamp_min(1.0)
        if not distance <= TOLERANCE[found[0].dtype]:
            raise WrongAnswerError(f"{call}\n  result {i} has relative error {distance:.1e}")
    return "right"


# --- inputs


def _normal(rng: Random, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    g = torch.Generator().manual_seed(rng.randrange(2**31))
    return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)


def _laid_out(rng: Random, x: Tensor) -> Tensor:
    """The same numbers with other strides."""
    kind = rng.randrange(4)
    if kind == 0 and x.dim() > 1:
        order = rng.sample(range(x.dim()), x.dim())
        back = [order.index(axis) for axis in range(x.dim())]
        return x.permute(order).contiguous().permute(back)
    if kind == 1 and x.dim():
        wide = torch.stack((x, torch.full_like(x, 7)), dim=-1)
        return wide[..., 0]
    return x


def _coefficient(rng: Random, low: float, high: float, shape: tuple[int, ...], dtype: torch.dtype) -> Any:
    """A number or a tensor that can be broadcast to ``shape``, between ``low`` and ``high``."""
    if rng.random() < 0.2:
        return rng.uniform(low, high)
    part = tuple(1 if rng.random() < 0.4 else n for n in shape)[rng.randrange(len(shape)) :]
    return low + (high - low) * _normal(rng, *part).sigmoid().to(dtype)


def _break(call: Call, rng: Random) -> None:
    """Make one argument wrong, or at least strange."""
    arguments = call.arguments
    name = rng.choice(list(arguments))
    if isinstance(arguments[name], dict) and arguments[name] and rng.random() < 0.9:
        arguments[name] = arguments = dict(arguments[name])
        name = rng.choice(list(arguments))
    x = arguments[name]
    call.broken = True
    if isinstance(x, np.ndarray):
        arguments[name] = _broken_array(rng, x)
    elif isinstance(x, Tensor):
        arguments[name], call.alien = _broken_tensor(rng, x)
    else:
        arguments[name] = rng.choice([None, -1, 0, 2**70, "rust", 0.5, (), b"", float("nan"), -3.5, object()])
        call.alien = True


def _huge(rng: Random, dims: int) -> list[int]:
    """A shape that no memory holds, and whose longest axis alone no memory holds."""
    shape = [2**36, 2**22, *[1] * (dims - 2)]
    rng.shuffle(shape)
    return shape


def _broken_tensor(rng: Random, x: Tensor) -> tuple[Any, bool]:
    kind = rng.randrange(8)
    if kind == 0:
        return rng.choice([None, 1.0, "x", [1.0], x.numpy() if x.dtype != torch.bfloat16 else None]), True
    if kind == 1:
        return x.to(rng.choice([torch.int64, torch.bool, torch.complex64, torch.uint8, torch.float64])), True
    if kind == 2 and x.numel() and x.is_floating_point():
        x = x.contiguous().clone()
        x.view(-1)[rng.randrange(x.numel())] = rng.choice([float("nan"), float("inf"), -float("inf"), 1e38, -1e38])
        return x, False
    if kind == 3:
        return x.unsqueeze(rng.randrange(x.dim() + 1)), False
    if kind == 4 and x.dim():
        return x.select(rng.randrange(x.dim()), 0) if 0 not in x.shape else x, False
    if kind == 5 and x.dim():
        axis = rng.randrange(x.dim())
        return x.narrow(axis, 0, rng.randrange(x.shape[axis] + 1)), True
    if kind == 6 and x.dim() > 1:
        return x.new_zeros(1).expand(_huge(rng, x.dim())), True
    return torch.cat((x, x), dim=0) if x.dim() else x, False


def _broken_array(rng: Random, x: np.ndarray[Any, Any]) -> Any:
    kind = rng.randrange(9)
    if kind == 0:
        return rng.choice([None, 1.0, "x", [1.0], {}, x.tolist()])
    if kind == 1:
        return x.astype(rng.choice(["float64", "int32", "bool", "float16", "complex64", "object", "int64"]))
    if kind == 2 and x.size and x.dtype.kind == "f":
        x = x.copy()
        x.flat[rng.randrange(x.size)] = rng.choice([np.nan, np.inf, -np.inf, 1e38, -1e38])
        return x
    if kind == 3:
        return x[..., None]
    if kind == 4 and x.ndim:
        return x[(slice(None, None, -1),) * x.ndim]
    if kind == 5 and x.ndim:
        axis = rng.randrange(x.ndim)
        return np.take(x, range(rng.randrange(x.shape[axis] + 1)), axis=axis)
    if kind == 6 and x.ndim > 1:
        shape = _huge(rng, x.ndim)
        return np.lib.stride_tricks.as_strided(x[(slice(0, 1),) * x.ndim], shape, [0] * x.ndim) if x.size else x
    if kind == 7:
        return np.asfortranarray(x)
    return np.concatenate((x, x)) if x.ndim else x


# --- the public functions


def _scan(rng: Random) -> Call:
    dtype = rng.choice([torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16])
    size = (rng.randint(0, 3), rng.randint(0, 40), rng.choice([0, 1, 2, 5, 17, 260]))
    bounded = rng.random() < 0.5
    arguments: dict[str, Any] = {
        "a": _coefficient(rng, -0.4, 1.05, size, dtype),
        "x": _laid_out(rng, _normal(rng, *size, dtype=dtype)),
        "state": None if rng.random() < 0.5 else _laid_out(rng, _normal(rng, size[0], size[2])),
        "starts": None if rng.random() < 0.5 else _normal(rng, size[0], size[1]) > 1,
        "backend": rng.choice(["auto", "torch", *(["rust"] if dtype != torch.float64 else [])]),
    }
    if bounded:
        arguments["floor"] = _coefficient(rng, -1.0, 1.0, size, dtype)

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


def _kinetics(rng: Random, heads: int) -> dict[str, Tensor]:
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
    ids = (_normal(rng, batch, tk) > 1).cumsum(1)
    arguments: dict[str, Any] = {
        "q": _laid_out(rng, _normal(rng, batch, heads, tq, dim, dtype=dtype)),
        "k": _laid_out(rng, _normal(rng, batch, kv_heads, tk, dim, dtype=dtype)),
        "v": _laid_out(rng, _normal(rng, batch, kv_heads, tk, dim, dtype=dtype)),
        "kinetics": _kinetics(rng, heads),
        "state": {name: _normal(rng, batch, heads, old).sigmoid() for name in ("calcium", "pool")}
        if stateful
        else None,
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
        "q": _laid_out(rng, _normal(rng, *per_token, rank, dtype=dtype)),
        "k": torch.nn.functional.normalize(_normal(rng, *per_token, rank), dim=-1).to(dtype),
        "v": _laid_out(rng, _normal(rng, *per_token, width, dtype=dtype)),
        "eta": _normal(rng, *per_token).sigmoid(),
        "rho_f": 0.5 + 0.5 * _normal(rng, heads).sigmoid(),
        "rho_s": 0.5 + 0.5 * _normal(rng, heads).sigmoid(),
        "eta_s": 0.1 * _normal(rng, heads).sigmoid(),
        "rule": rng.choice(["hebb", "oja", "delta"]),
        "starts": None if rng.random() < 0.5 else _normal(rng, batch, tokens) > 1,
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
    arguments: dict[str, Any] = {"x": _laid_out(rng, _normal(rng, *shape, dtype=dtype))}
    arguments |= {name: _normal(rng, *shape[-1:]) for name in ("omega", "phi", "baseline")}

    def exact(given: dict[str, Any]) -> Results:
        return (oscillate_reference(**{name: x.double() for name, x in given.items()}),)

    return Call("oscillate", arguments, lambda given: (oscillate(**given),), exact)


def _lateral_inhibition(rng: Random) -> Call:
    dtype = rng.choice([torch.float32, torch.float64, torch.bfloat16])
    shape = (rng.randint(1, 2), rng.randint(1, 2), rng.randint(1, 30), rng.randint(1, 5))
    arguments: dict[str, Any] = {
        "x": _laid_out(rng, _normal(rng, *shape, dtype=dtype)),
        "strength": rng.uniform(-1, 1),
        "window": rng.randint(1, 40),
        "starts": None if rng.random() < 0.5 else _normal(rng, shape[0], shape[2]) > 1,
    }

    def run(given: dict[str, Any]) -> Results:
        return (lateral_inhibition(**given)[0],)

    def exact(given: dict[str, Any]) -> Results:
        return (lateral_inhibition_reference(given["x"].double(), *list(given.values())[1:])[0],)

    return Call("lateral_inhibition", arguments, run, exact)


# --- the compiled functions


def _compiled(name: str, *arguments: Any) -> Results:
    found = getattr(wheel.kernels(), name)(*arguments)
    found = found if isinstance(found, tuple) else (found,)
    return [torch.from_numpy(x) for x in found if x is not None]


def _raw(name: str, arguments: dict[str, Any], exact: Callable[[dict[str, Any]], Results] | None) -> Call:
    def run(given: dict[str, Any]) -> Results:
        return _compiled(name, *given.values())

    return Call(f"bouton_kernels.{name}", arguments, run, exact, (ValueError, TypeError))


def _raw_scan_arguments(rng: Random) -> dict[str, Any]:
    size = (rng.randint(0, 3), rng.randint(0, 30), rng.choice([0, 1, 3, 20, 260]))
    a, floor = (tuple(1 if rng.random() < 0.4 else n for n in size) for _ in range(2))
    return {
        "x": _normal(rng, *size).numpy(),
        "a": _normal(rng, *a).sigmoid().numpy(),
        "state": _normal(rng, size[0], size[2]).numpy(),
        "starts": None if rng.random() < 0.5 else (_normal(rng, size[0], size[1]) > 1).numpy(),
        "floor": None if rng.random() < 0.5 else _normal(rng, *floor).numpy(),
    }


def _raw_scan(rng: Random) -> Call:
    def exact(given: dict[str, Any]) -> Results:
        numbers: dict[str, Any] = {
            name: None if x is None else torch.from_numpy(x) for name, x in list(given.items())[:5]
        }
        double = {name: x if x is None or name == "starts" else x.double() for name, x in numbers.items()}
        return (scan_reference(**double)[0],)

    return _raw("scan", _raw_scan_arguments(rng) | {"threads": rng.randint(0, 3)}, exact)


def _raw_scan_backward(rng: Random) -> Call:
    given = _raw_scan_arguments(rng)
    y = given.pop("x")
    grads = {"grad_y": np.ones_like(y), "grad_last": np.ones_like(given["state"]), "y": y}
    rest = {"want_a": rng.random() < 0.5, "want_floor": rng.random() < 0.5, "threads": rng.randint(0, 3)}
    return _raw("scan_backward", grads | given | rest, None)


def _raw_fatigue_call(rng: Random) -> dict[str, Any]:
    batch, kv_heads, group, dim = rng.randint(1, 2), rng.randint(1, 2), rng.randint(1, 2), rng.randint(1, 20)
    tq, old = rng.choice([1, 3, 17, 70]), rng.choice([0, 30])
    heads, tk = kv_heads * group, tq + old
    fresh = rng.random() < 0.5
    old_state = rng.random() < 0.5
    of_state = old + rng.choice([0, 5]) if old_state else tk
    return {
        "q": _normal(rng, batch, heads, tq, dim).numpy(),
        "k": _normal(rng, batch, kv_heads, tk, dim).numpy(),
        "v": _normal(rng, batch, kv_heads, tk, dim).numpy(),
        "kinetics": torch.stack(list(_kinetics(rng, heads).values())).numpy(),
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
    return _raw("fatigue_attention", arguments, None)


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
    return _raw("fatigue_attention_backward", arguments, None)


def _raw_fast_weights(rng: Random) -> Call:
    batch, heads = rng.randint(0, 2), rng.randint(0, 2)
    tokens, rank, dv = rng.choice([0, 1, 16, 40]), rng.choice([0, 1, 5, 16]), rng.choice([0, 1, 20])
    slow = rng.random() < 0.5
    call = {
        "rule": rng.choice(["hebb", "oja", "delta"]),
        "q": _normal(rng, batch, tokens, heads, rank).numpy(),
        "k": _normal(rng, batch, tokens, heads, rank).numpy(),
        "v": _normal(rng, batch, tokens, heads, dv).numpy(),
        "eta": np.full((batch, tokens, heads), 0.1, "float32"),
        "gate": None if rng.random() < 0.5 else np.ones((batch, tokens, heads), "float32"),
        "rates": np.full((3, heads), 0.9, "float32"),
        "fast": np.zeros((batch, heads, rank, dv), "float32"),
        "slow": np.zeros((batch, heads, rank, dv), "float32") if slow else None,
        "starts": None if rng.random() < 0.5 else (_normal(rng, batch, tokens) > 1).numpy().view("uint8"),
    }
    return _raw("fast_weights", {"call": call, "keep": rng.random() < 0.5, "threads": rng.randint(0, 3)}, None)
