"""In which variants the Triton kernels of the spiking neurons are compiled for a GPU that is not there.

See :mod:`bouton.ops.triton_report`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from bouton.ops.lif import triton as backend
from bouton.ops.lif import triton_recurrent as recurrent
from bouton.ops.triton_compile import Launch, launches
from bouton.ops.triton_report import Launched

BATCH, TOKENS = 32, 64
RESETS = ("subtract", "subtract_before_decay", "zero", "none")
SURROGATES = ("atan", "fast_sigmoid", "sigmoid", "triangle", "rectangle")


class Variant(NamedTuple):
    """One way in which the ops are called; ``whole``: with a gain, documents, and gradients through the reset."""

    width: int = 512
    recurrent: bool = False
    reset: str = "subtract"
    surrogate: str = "atan"
    whole: bool = False
    dtype: torch.dtype = torch.bfloat16

    def __str__(self) -> str:
        extras = ["recurrent"] if self.recurrent else []
        extras += ["gain, documents, reset attached"] if self.whole else []
        dtype = str(self.dtype).removeprefix("torch.")
        return " ".join((f"{dtype} H={self.width} {self.reset} {self.surrogate}", *extras))


TARGETS = (
    Variant(),
    Variant(dtype=torch.float32),
    *(Variant(width, recurrent=True) for width in (128, 512)),
    Variant(512, recurrent=True, dtype=torch.float32),
)
OTHERS = (
    *(Variant(reset=reset) for reset in RESETS[1:]),
    *(Variant(surrogate=surrogate) for surrogate in SURROGATES[1:]),
    *(Variant(reset=reset, whole=True) for reset in RESETS),
    Variant(whole=True, dtype=torch.float32),
    Variant(1001, whole=True),
    *(Variant(width, recurrent=True, whole=True) for width in (16, 20, 32, 50, 64, 80, 112, 128, 200, 512)),
    *(Variant(128, recurrent=True, reset=reset, whole=True) for reset in RESETS[1:]),
    *(Variant(128, recurrent=True, surrogate=surrogate) for surrogate in SURROGATES[1:]),
    *(Variant(width, recurrent=True, whole=True, dtype=torch.float32) for width in (64, 128, 512)),
)


def launched(variant: Variant) -> Iterator[Launched]:
    """The kernels of a training step of ``variant``, once each."""

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    width, whole = variant.width, variant.whole
    x, state, constant = empty(BATCH, TOKENS, width, dtype=variant.dtype), empty(BATCH, width), empty(width)
    gain = constant if whole else None
    starts = empty(BATCH, TOKENS, dtype=torch.bool) if whole else None
    choices = (variant.reset, variant.surrogate, 2.0, not whole)

    def plain() -> None:
        out, last, kept = backend.launch_forward(x, constant, constant, gain, state, state, starts, *choices, True)
        backend.launch_backward(out, last, kept, x, constant, constant, gain, state, starts, *choices)

    def with_map() -> None:
        given = (empty(width, width), constant, constant, gain)
        out, last, kept = recurrent.launch_forward(x, *given, state, state, starts, *choices, True)
        recurrent.launch_backward(out, last, kept, x, *given, state, starts, *choices, True)

    seen = set()
    for launch in launches(with_map if variant.recurrent else plain):
        if launch.name not in seen:
            seen.add(launch.name)
            yield Launched(launch.name, launch, _tile(launch))


def _tile(launch: Launch) -> tuple[int, ...]:
    """What one way through the loop does: tokens or sequences, and neurons. One token by itself has no loop."""
    rows = launch.constants.get("K", launch.constants.get("BB"))
    return (rows, launch.constants["BH"]) if rows else ()
