"""Whether Triton's kernels can run here, compiled or interpreted: what every backend of that name has to ask.

With ``TRITON_INTERPRET=1`` in the environment they can be asked for by name on a CPU, for tests.
"""

from __future__ import annotations

import importlib.util
import os
from functools import cache

import torch


def interpreted() -> bool:
    """Whether Triton's interpreter was asked for."""
    return os.environ.get("TRITON_INTERPRET", "") == "1"


def devices() -> tuple[str, ...]:
    """Device types on which the kernels run in this process."""
    return ("cuda", "cpu") if interpreted() else ("cuda",)


@cache
def why_not() -> str | None:
    """Why no kernel can run on this machine; None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if interpreted():
        return None
    if not torch.cuda.is_available():
        return "needs a CUDA device, or TRITON_INTERPRET=1 in the environment"
    if torch.version.cuda is not None and torch.cuda.get_device_capability() < (8, 0):
        return "needs a device of compute capability 8.0 or later"
    return None


def by_name_alone(op: str, device: str) -> str:
    """Why ``auto`` does not take a backend that is equal to its definition, but was never timed on a GPU."""
    if device == "cpu":
        return "runs on a CPU only under the interpreter, and then only if asked for by name"
    return f"has not been measured on a GPU yet: ask for it by name (kernels.{op}=triton)"
