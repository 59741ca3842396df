"""In which variants the Triton kernels of the oscillating activation are compiled for a GPU that is not there.

See :mod:`bouton.ops.triton_report`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from bouton.ops.oscillate import triton as backend
from bouton.ops.triton_compile import launches
from bouton.ops.triton_report import Launched

ROWS = 8192


class Variant(NamedTuple):
    """One way in which the op is called."""

    width: int = 3072
    offset: bool = True
    of_input: bool = True
    of_constants: bool = True
    dtype: torch.dtype = torch.bfloat16

    def __str__(self) -> str:
        without = (
            ("no baseline", self.offset),
            ("fixed input", self.of_input),
            ("fixed constants", self.of_constants),
        )
        words = [name for name, used in without if not used]
        return " ".join((f"{str(self.dtype).removeprefix('torch.')} width {self.width}", *words))


TARGETS = (Variant(), Variant(dtype=torch.float32))
OTHERS = (
    Variant(offset=False),
    Variant(of_constants=False),
    Variant(of_input=False),
    Variant(width=1001),
    Variant(dtype=torch.float16),
)


def launched(variant: Variant) -> Iterator[Launched]:
    """The kernels of a training step of ``variant``."""
    x = torch.empty(ROWS, variant.width, dtype=variant.dtype, device="meta")
    constant = torch.empty(variant.width, device="meta")

    def train() -> None:
        backend.launch_forward(x, constant, constant, constant if variant.offset else None)
        backend.launch_backward(x, x, constant, constant, variant.of_input, variant.of_constants)

    for launch in launches(train):
        yield Launched(launch.name, launch, (launch.constants["BR"], launch.constants["BC"]))
