"""Arrays as the engine takes them: ids in uint32, numbers in float32, contiguous."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Ids: TypeAlias = NDArray[np.uint32]
Floats: TypeAlias = NDArray[np.float32]
Nodes: TypeAlias = "str | int | Sequence[str] | Sequence[int] | NDArray[Any]"
"""Nodes by id or by label: one, or several."""

NONE = 2**32 - 1
"""The id of no node, and the relation of a node with itself."""


def to_ids(values: ArrayLike, name: str) -> Ids:
    """Whole numbers from 0 on as uint32, without a copy where they are that already.

    Raises:
        ValueError: something that is no id.
    """
    array = np.asarray(values)
    if array.size == 0:
        return np.zeros(array.shape, np.uint32)
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name} has dtype {array.dtype}, but ids are whole numbers")
    if array.dtype != np.uint32 and (array.min() < 0 or array.max() > NONE):
        raise ValueError(f"{name} contains {array.min() if array.min() < 0 else array.max()}, which is no id")
    return np.ascontiguousarray(array, dtype=np.uint32)


def to_count(value: int, name: str, least: int = 0) -> int:
    """A number of things.

    Raises:
        ValueError: it is below ``least``.
    """
    if value < least:
        raise ValueError(f"{name} = {value} must be at least {least}")
    return int(value)


def to_floats(values: ArrayLike, length: int, name: str) -> Floats:
    """Numbers as float32; one number stands for ``length`` equal ones.

    Raises:
        ValueError: another length.
    """
    array = np.asarray(values, dtype=np.float32)
    if array.ndim == 0:
        return np.full(length, array, np.float32)
    if array.shape != (length,):
        raise ValueError(f"{name} has shape {array.shape}, but must have ({length},)")
    return np.ascontiguousarray(array)
