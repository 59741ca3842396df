"""The Triton kernels of the ops compile for a Hopper GPU, and what they become has not grown.

Compiled in a process of its own, since Triton settles when it is imported whether it interprets.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bouton.ops.triton_compile import Code, listing, through_the_loop

ROOT = Path(__file__).parents[2]
LISTING = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;          /* 0x0 */
        /*0010*/                   FADD R2, R2, R3 ;               /* 0x0 */
        /*0020*/              @!P0 BRA 0x60 ;                      /* 0x0 */
        /*0030*/                   FSEL R2, R2, RZ, P1 ;           /* 0x0 */
        /*0040*/                   FSEL R3, R3, RZ, P1 ;           /* 0x0 */
        /*0050*/                   BRA 0x90 ;                      /* 0x0 */
        /*0060*/                   FMUL R2, R2, R2 ;               /* 0x0 */
        /*0070*/                   FMUL R3, R3, R3 ;               /* 0x0 */
        /*0080*/                   BRA 0xa0 ;                      /* 0x0 */
        /*0090*/                   FSEL R3, R3, R2, P1 ;           /* 0x0 */
        /*00a0*/                   MUFU.EX2 R4, R2 ;               /* 0x0 */
        /*00b0*/               @P2 BRA 0x10 ;                      /* 0x0 */
        /*00c0*/                   EXIT ;                          /* 0x0 */
        /*00d0*/                   BRA 0xd0;                       /* 0x0 */
"""


def test_the_shortest_way_through_a_loop() -> None:
    lines = listing(LISTING)
    assert [line.goes_on for line in lines].count(False) == 4
    assert through_the_loop(lines) == ["FADD", "BRA", "FMUL", "FMUL", "BRA", "MUFU.EX2", "BRA"]
    assert through_the_loop(lines[:2]) == []


def test_counts_per_element() -> None:
    code = Code(
        registers=32,
        spilled=0,
        shared=0,
        threads=64,
        instructions=200,
        counts={},
        loop_instructions=80,
        loop={"EX2": 8, "RCP": 4},
    )
    assert code.per_element(512) == {"all": 10.0, "EX2": 1.0, "RCP": 0.5, "special": 1.5}


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What ``benchmarks/gpu_offline.py`` writes about the variants of the targets."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    target = tmp_path_factory.mktemp("offline") / "rows.json"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    path = os.pathsep.join((str(ROOT / "src"), *filter(None, [environment.get("PYTHONPATH")])))
    command = [sys.executable, str(ROOT / "benchmarks/gpu_offline.py"), "--targets", "--json", str(target)]
    done = subprocess.run(command, env=environment | {"PYTHONPATH": path}, capture_output=True, text=True, check=False)
    print(done.stdout)
    assert target.exists(), done.stderr[-3000:]
    found: dict[str, Any] = json.loads(target.read_text())
    return found


def test_no_kernel_spills(document: dict[str, Any]) -> None:
    rows = document["kernels"]
    for op, kernels in KERNELS.items():
        assert {row["kernel"] for row in rows if row["op"] == op} >= kernels
    # The tiles are chosen for the assembler of Triton 3.9; under another a few loop constants may find no register.
    most = 0 if document["triton"].startswith("3.9.") else 64
    spills = [
        f"{row['op']} {row['variant']} {row['kernel']}: {row['spilled']} bytes" for row in rows if row["spilled"] > most
    ]
    assert spills == []
    # A block of a Hopper GPU has at most 227 KiB of shared memory.
    assert max(row["shared"] for row in rows) <= 227 * 1024


def test_special_functions_of_the_forward_pass(document: dict[str, Any]) -> None:
    """Of fatigue attention three per pair, in one pass: one exponential, one logarithm, one reciprocal."""
    checked = 0
    for row in document["kernels"]:
        if row["op"] == "fatigue_attention" and row["kernel"] in FORWARD:
            assert row["per element"]["special"] <= 3.05, f"{row['variant']} {row['kernel']}"
            # A thread walks along the queries of a key by itself: scans made of shuffles would cost more.
            assert row["per element"]["all"] <= 47, f"{row['variant']} {row['kernel']}"
            checked += 1
    assert checked == 4 * len(FORWARD)


def test_special_functions_of_the_other_ops(document: dict[str, Any]) -> None:
    """A spike needs none, its derivative one; an oscillating unit two, of its envelope: the sine is a polynomial."""
    most = {"lif": {"forward": 0, "walk": 0, "backward": 1, "walk_back": 1}, "oscillate": {"forward": 2, "backward": 2}}
    counts = {
        (row["op"], row["kernel"]): row["per element"]["special"]
        for row in document["kernels"]
        if row["op"] in most and row["kernel"] in most[row["op"]]
    }
    assert len(counts) == 6
    assert all(found <= most[op][kernel] + 0.05 for (op, kernel), found in counts.items()), counts


KERNELS = {
    "fatigue_attention": {"prepare", "advance", "advance general", "gather", "backward", "backward general", "decode"},
    "lif": {"forward", "backward", "walk", "walk_back", "step", "step_back"},
    "oscillate": {"forward", "backward"},
}
FORWARD = ("advance",)
