"""IDX files, in which MNIST comes: big-endian; two zero bytes, a type, how many axes, their lengths, the data."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bouton.errors import DataError

BYTES = 8  # the type of uint8


def read_idx(folder: Path, name: str, axes: int) -> NDArray[np.uint8]:
    """``name`` or ``name.gz`` in ``folder`` as an array with so many axes.

    Raises:
        DataError: a file that is missing, damaged or something else.
    """
    path = next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)
    if path is None:
        raise DataError(f"domain.path = {folder} holds neither {name} nor {name}.gz")
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    begin = 4 + 4 * axes
    if len(data) < begin or data[:4] != bytes([0, 0, BYTES, axes]):
        raise DataError(f"{path} is no IDX file of bytes with {axes} axes")
    shape = tuple(int(n) for n in np.frombuffer(data, ">u4", axes, 4))
    if len(data) != begin + math.prod(shape):
        raise DataError(f"{path} has {len(data) - begin:,} bytes of data, but its shape {shape} {math.prod(shape):,}")
    return np.frombuffer(data, np.uint8, offset=begin).reshape(shape)
