"""Random tensors in any layout, and ways to make one argument of a call wrong."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bouton.testing.fuzz.call import Call


def normal(rng: Random, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    g = torch.Generator().manual_seed(rng.randrange(2**31))
    return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)


def laid_out(rng: Random, x: Tensor) -> Tensor:
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


def coefficient(rng: Random, low: float, high: float, shape: tuple[int, ...], dtype: torch.dtype) -> Any:
    """A number or a tensor that can be broadcast to ``shape``, between ``low`` and ``high``."""
    if rng.random() < 0.2:
        return rng.uniform(low, high)
    part = tuple(1 if rng.random() < 0.4 else n for n in shape)[rng.randrange(len(shape)) :]
    return low + (high - low) * normal(rng, *part).sigmoid().to(dtype)


def break_one(call: Call, rng: Random) -> None:
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
