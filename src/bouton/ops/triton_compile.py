"""What Triton kernels become on a GPU that is not there: compiled offline, their machine code counted.

Triton brings its own assembler and disassembler, so registers, spilled bytes, shared memory and instructions of a
kernel can be had on any machine. The kernels are compiled as they are launched: :func:`launches` runs the code that
launches them and writes down the arguments instead. None of this says how fast a kernel runs.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch

NAMES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.uint8: "u8",
}
# Opcodes, by the longest prefix, to the names under which they are counted.
KINDS = {
    "MUFU.EX2": "EX2",
    "MUFU.LG2": "LG2",
    "MUFU.RCP": "RCP",
    "MUFU": "other MUFU",
    "SHFL": "SHFL",
    "FFMA": "FFMA",
    "FADD": "FADD",
    "FMUL": "FMUL",
    "FMNMX": "FMNMX",
    "FSEL": "FSEL",
    "HMMA": "MMA",
    "HGMMA": "MMA",
    "LDS": "LDS",
    "LDSM": "LDS",
    "STS": "STS",
    "STSM": "STS",
    "LDL": "LDL",
    "STL": "STL",
    "LDG": "LDG",
    "STG": "STG",
    "RED": "RED",
    "REDG": "RED",
    "BAR": "BAR",
}
SPECIAL = ("EX2", "LG2", "RCP", "other MUFU")
LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?(\S+)([^;]*);")


@dataclass(frozen=True)
class Launch:
    """A kernel as it is launched."""

    kernel: Any
    grid: tuple[int, ...]
    signature: dict[str, str]
    constants: dict[str, Any]
    attributes: dict[tuple[int, ...], list[list[Any]]]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.kernel.__name__)


@dataclass(frozen=True)
class Code:
    """Machine code of a kernel.

    ``counts`` are instructions by :data:`KINDS` in the whole kernel; ``loop`` those on the shortest way through the
    loop with the most instructions, which is what a tile costs that needs neither a mask nor another special case.
    """

    registers: int
    spilled: int  # bytes of local memory per thread
    shared: int  # bytes per block of threads
    threads: int
    instructions: int
    counts: dict[str, int]
    loop_instructions: int
    loop: dict[str, int]

    def per_element(self, elements: int) -> dict[str, float]:
        """Instructions of one way through the loop per element of a tile of ``elements``; "all" is the sum."""
        share = elements / self.threads
        each = {kind: round(count / share, 3) for kind, count in sorted(self.loop.items())}
        each["special"] = round(sum(self.loop.get(kind, 0) for kind in SPECIAL) / share, 3)
        return {"all": round(self.loop_instructions / share, 2), **each}

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def launches(run: Callable[[], object]) -> list[Launch]:
    """What ``run`` would launch, in order. It should work on tensors of the device "meta", which have no memory."""
    from triton.runtime.jit import JITFunction

    found: list[Launch] = []

    def record(kernel: Any, *args: Any, grid: tuple[int, ...], warmup: bool, **named: Any) -> None:
        found.append(_launch(kernel, args, grid, named))

    with mock.patch.object(JITFunction, "run", record):
        run()
    return found


def _launch(kernel: Any, args: tuple[Any, ...], grid: tuple[int, ...], named: dict[str, Any]) -> Launch:
    """Arguments as Triton specialises them: a one becomes a constant, divisibility by 16 is known."""
    options = {name: value for name, value in named.items() if name not in kernel.arg_names}
    given = dict(zip(kernel.arg_names, args, strict=False)) | {n: x for n, x in named.items() if n not in options}
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for i, parameter in enumerate(kernel.params):
        value = given[parameter.name]
        kind, divisible = ("i32", False) if parameter.do_not_specialize else _specialised(value)
        if parameter.is_constexpr or kind == "constexpr":
            kind, divisible = "constexpr", False
            constants[parameter.name] = value
        signature[parameter.name] = kind
        if divisible:
            attributes[(i,)] = [["tt.divisibility", 16]]
    return Launch(kernel, grid, signature, constants, attributes, options)


def _specialised(value: Any) -> tuple[str, bool]:
    """Triton's name for the type of an argument, and whether it is a multiple of 16; allocations always are."""
    if isinstance(value, torch.Tensor):
        return "*" + NAMES[value.dtype], True
    if isinstance(value, float):
        return "fp32", False
    if isinstance(value, int) and not isinstance(value, bool) and value != 1:
        return "i32" if -(2**31) <= value < 2**31 else "i64", value % 16 == 0
    return "constexpr", False


def compiled(launch: Launch, capability: int = 90) -> Code:
    """The machine code of ``launch`` for an NVIDIA GPU of ``capability`` (90: Hopper)."""
    import triton
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    source = ASTSource(launch.kernel, launch.signature, constexprs=launch.constants, attrs=launch.attributes)
    target = GPUTarget("cuda", capability, 32)
    kernel = triton.compile(source, target=target, options=launch.options)
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "kernel.cubin"
        binary.write_bytes(kernel.asm["cubin"])
        tool = knobs.nvidia.cuobjdump.path
        usage, sass = (
            subprocess.run([tool, option, str(binary)], capture_output=True, text=True, check=True).stdout
            for option in ("-res-usage", "-sass")
        )
    resources = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    lines = listing(sass)
    way = through_the_loop(lines)
    return Code(
        registers=resources["REG"],
        spilled=resources["STACK"] + resources["LOCAL"],
        shared=int(kernel.metadata.shared),
        threads=32 * int(kernel.metadata.num_warps),
        instructions=len(lines),
        counts=_counted([line.opcode for line in lines]),
        loop_instructions=len(way),
        loop=_counted(way),
    )


def _counted(opcodes: list[str]) -> dict[str, int]:
    kinds = (next((KINDS[p] for p in _prefixes(op) if p in KINDS), None) for op in opcodes)
    return dict(Counter(kind for kind in kinds if kind is not None))


def _prefixes(opcode: str) -> list[str]:
    parts = opcode.split(".")
    return [".".join(parts[:n]) for n in range(len(parts), 0, -1)]


class Line(NamedTuple):
    """One machine instruction."""

    address: int
    opcode: str
    jump: int | None  # the address to which it may jump
    goes_on: bool  # whether the next instruction may follow


def listing(sass: str) -> list[Line]:
    """The instructions in what cuobjdump prints."""
    lines = []
    for address, predicate, opcode, rest in (m.groups() for m in map(LINE.match, sass.splitlines()) if m):
        to = re.search(r"0x([0-9a-f]+)\s*$", rest) if opcode.startswith("BRA") else None
        # A jump that nothing makes conditional has its target as its only operand.
        always = predicate is None and re.fullmatch(r"\s*0x[0-9a-f]+\s*", rest) is not None
        ends = predicate is None and opcode in ("EXIT", "RET", "BRX")
        lines.append(Line(int(address, 16), opcode, int(to[1], 16) if to else None, not ((to and always) or ends)))
    return lines


def through_the_loop(lines: list[Line]) -> list[str]:
    """Opcodes on the shortest way through the longest loop; none if there is no loop."""
    index = {line.address: i for i, line in enumerate(lines)}
    jumps = {i: index[line.jump] for i, line in enumerate(lines) if line.jump in index}
    # The endless loop of one instruction behind the code is not one.
    loops = [(i - to, to, i) for i, to in jumps.items() if to < i]
    if not loops:
        return []
    _, start, end = max(loops)
    before: dict[int, int] = {}
    steps = {start: 1}
    for i in range(start, end):
        if i not in steps:
            continue
        following = [i + 1] if lines[i].goes_on else []
        if i in jumps:
            following.append(jumps[i])
        for after in following:
            if i < after <= end and steps[i] + 1 < steps.get(after, end + 2):
                steps[after], before[after] = steps[i] + 1, i
    way = [end]
    while way[-1] != start:
        way.append(before[way[-1]])
    return [lines[i].opcode for i in reversed(way)]
