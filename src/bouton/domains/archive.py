"""``.npz`` files that a user names."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bouton.errors import DataError


def read_npz(path: str | None, what: str, keys: Sequence[str] = ()) -> dict[str, NDArray[Any]]:
    """All arrays of the file ``domain.path``.

    Args:
        what: should be in it, for messages.
        keys: arrays that it must have.

    Raises:
        DataError: no path, no such file, a file of another kind, or an array that is missing.
    """
    if path is None:
        raise DataError(f"domain.path = null is not valid: name {what}")
    place = Path(path).expanduser()
    try:
        with np.load(place) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise DataError(f"domain.path = {place}: there is no such file; name {what}") from None
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(f"domain.path = {place} is no .npz file that can be read: {str(error)[:120]}") from None
    for key in keys:
        if key not in arrays:
            raise DataError(f"domain.path = {place} has no array '{key}': name {what}")
    return arrays
