"""One random call, and what must come of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bouton.errors import KernelError

Results = Sequence[Tensor]
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
        return f"{self.name}({', '.join(f'{key}={told(x)}' for key, x in self.arguments.items())})"


def told(x: Any) -> str:
    if isinstance(x, Tensor):
        return f"Tensor{tuple(x.shape)} {x.dtype} strides {x.stride()}"
    if isinstance(x, np.ndarray):
        return f"array{x.shape} {x.dtype} strides {x.strides}"
    if isinstance(x, dict):
        return "{" + ", ".join(f"{key}: {told(value)}" for key, value in x.items()) + "}"
    if isinstance(x, (tuple, list)):
        return "(" + ", ".join(map(told, x)) + ")"
    return repr(x)


def attempt(call: Call) -> str:
    """Make the call: "right", "answer" (nothing to compare with), or the name of the exception.

    Raises:
        WrongAnswerError: the answer is wrong, or an exception came that must not come.
    """
    try:
        found = list(call.run(call.arguments))
    except Exception as error:
        expected = (*call.errors, *TORCH_ERRORS) if call.alien else call.errors
        if not call.broken:  # it may be refused, but its types are right
            expected = tuple(kind for kind in expected if kind is not TypeError)
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
