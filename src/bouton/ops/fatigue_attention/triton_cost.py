"""In which variants the Triton kernels of fatigue attention are compiled for a GPU that is not there.

See :mod:`bouton.ops.triton_report`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from bouton.ops.fatigue_attention import plain
from bouton.ops.fatigue_attention import triton as backend
from bouton.ops.triton_compile import launches
from bouton.ops.triton_report import Launched

# The size of the targets. It matters to a kernel only in what is divisible by 16.
BATCH, HEADS, TOKENS, CACHED = 4, 16, 4096, 4096


class Variant(NamedTuple):
    """One way in which the op is called."""

    dim: int
    rule: str
    release: str = "kinetic"
    window: int = 0
    segmented: bool = False
    learned: bool = True
    dtype: torch.dtype = torch.bfloat16

    def __str__(self) -> str:
        extras = [self.release] if self.release != "kinetic" else []
        extras += [name for name, used in (("window", self.window), ("documents", self.segmented)) if used]
        extras += [] if self.learned else ["fixed kinetics"]
        return " ".join((f"{str(self.dtype).removeprefix('torch.')} D={self.dim} {self.rule}", *extras))


TARGETS = tuple(Variant(dim, rule) for dim in (64, 128) for rule in ("min", "mul"))
OTHERS = (
    *(Variant(dim, rule, learned=False) for dim in (64, 128) for rule in ("min", "mul")),
    *(Variant(64, rule, "age") for rule in ("min", "mul")),
    *(Variant(dim, rule, window=512, segmented=True) for dim in (64, 128) for rule in ("min", "mul")),
    *(Variant(dim, "min") for dim in (16, 32, 96, 256)),
    *(Variant(64, rule, dtype=torch.float32) for rule in ("min", "mul")),
)


def launched(variant: Variant) -> Iterator[Launched]:
    """Every kernel that a training step and a decoding step of ``variant`` launch, and their plain peers, once each."""

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    q = empty(BATCH, HEADS, TOKENS, variant.dim, dtype=variant.dtype)
    state, kinetics = empty(BATCH, HEADS, TOKENS), empty(10, HEADS)
    ids = empty(BATCH, TOKENS, dtype=torch.int64) if variant.segmented else None
    options = (variant.window, variant.rule, variant.release)

    def train() -> None:
        out, _, _, total, boundaries = backend.launch_forward(q, q, q, kinetics, state, state, ids, ids, *options, True)
        backend.launch_backward(
            out, state, state, out, total, boundaries, q, q, q, kinetics, ids, ids, *options, variant.learned
        )

    def decode() -> None:
        one = q[:, :, :1]
        its = ids[:, :1] if ids is not None else None
        backend.launch_forward(one, q, q, kinetics, state, state, its, ids, *options, False)

    def without_fatigue() -> None:
        out, total = plain.launch_forward(q, q, q)
        plain.launch_backward(out, out, total, q, q, q)

    seen = set()
    for launch in (*launches(train), *launches(decode), *launches(without_fatigue)):
        name = launch.name + (" general" if launch.constants.get("GENERAL") else "")
        if name not in seen:
            seen.add(name)
            rows, columns = launch.constants.get("BM"), launch.constants.get("BN")
            yield Launched(name, launch, (rows, columns) if rows and columns else ())
