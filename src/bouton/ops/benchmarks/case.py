"""What a benchmark case is: one op on one problem, its executions, its definition, and its peers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from bouton.ops import backends

Inputs = dict[str, Tensor]
# Takes the inputs by name and returns the outputs in the order of `Case.outputs` (peers: the first alone).
Run = Callable[[Inputs], tuple[Tensor, ...]]
# dtype -> the inputs on the CPU, the same numbers every time; state and constants keep float32.
MakeInputs = Callable[[torch.dtype], Inputs]

FORWARD, BOTH = "forward", "forward+backward"
PASSES = (FORWARD, BOTH)
SHAPES = ("issue", "sweep", "all", "small")


@dataclass(frozen=True)
class Execution:
    """One way to compute the case, ours (checked against the definition) or a peer's (timed only).

    ``make`` is called once, before the first call, with device and dtype; it may raise to say that the execution cannot
    run here.
    """

    name: str
    make: Callable[[str, torch.dtype], Run]
    ours: bool = False
    passes: tuple[str, ...] = PASSES
    compiled: bool = False  # torch.compile works at the first call


@dataclass(frozen=True)
class Work:
    """What a pass must do at least: arithmetic of its matrix products, and bytes moved in float32."""

    flops: float = 0.0
    bytes: float = 0.0

    def of(self, dtype: torch.dtype) -> Work:
        """The same in another dtype."""
        return replace(self, bytes=self.bytes * dtype.itemsize / torch.float32.itemsize)


@dataclass(frozen=True)
class Case:
    """One op on one problem.

    Attributes:
        name: tells the case from the others of its op.
        dims: sizes for the record, such as B, H, T, D; ``T`` is the axis of the plot.
        inputs: makes the timed problem.
        trained: inputs that receive gradients in the timed backward pass.
        executions: ours and the peers'; the first peer is the one that ratios are quoted against.
        outputs: names of what ours and the definition return.
        exact: the definition; called in float64 on the CPU.
        problems: makers of small problems for the gate, which checks the gradients of every input.
        out_like: the input whose shape the first output has.
        limits: name of an output, ``d`` + name of an input, or ``*`` -> largest relative error in float32.
        work: pass -> least work, or nothing where none can be stated.
        gate: cases of one op with the same word here share the result of the gate.
        passes: those that are timed; with none, the case is checked alone.
    """

    op: str
    name: str
    dims: Mapping[str, int]
    inputs: MakeInputs
    trained: tuple[str, ...]
    executions: tuple[Execution, ...]
    outputs: tuple[str, ...]
    exact: Run
    problems: tuple[MakeInputs, ...]
    out_like: str
    limits: Mapping[str, float]
    gate: str
    work: Mapping[str, Work] = field(default_factory=dict)
    passes: tuple[str, ...] = PASSES


def of_backends(op: str, run: Callable[[str], Run], refused: Mapping[str, str] | None = None) -> tuple[Execution, ...]:
    """One execution for every backend written for ``op``; those refused on a device say why.

    Args:
        refused: backend -> why it cannot execute this case.
    """

    def make(name: str) -> Callable[[str, torch.dtype], Run]:
        def refuse_or_run(device: str, dtype: torch.dtype) -> Run:
            if (reason := backends.refusals(op, device, refused).get(name)) is not None:
                raise RuntimeError(reason)
            return run(name)

        return refuse_or_run

    order = sorted(backends.backends_of(op), key=lambda name: name == "torch")
    return tuple(Execution(name, make(name), ours=True) for name in order)


def peer(name: str, run: Callable[[Inputs], Tensor], passes: tuple[str, ...] = PASSES) -> Execution:
    """A peer that can run everywhere."""
    return Execution(name, lambda device, dtype: lambda x: (run(x),), passes=passes)


def generator(seed: int = 0) -> torch.Generator:
    """A generator of the same numbers on every machine."""
    return torch.Generator().manual_seed(seed)
