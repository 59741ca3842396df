"""Compile the Triton kernels of the ops for a Hopper GPU (sm_90) and print what they became.

    python benchmarks/gpu_offline.py [OP] [--targets] [--json benchmarks/results/OP_sm90.json]

Needs triton, no GPU. Registers and spilled bytes are per thread, shared memory per block; the other columns are machine
instructions on the shortest way through a kernel's loop, per element of its tile: a pair of query and key in
``fatigue_attention``, a neuron at a token in ``lif``, a number in ``oscillate``. Nothing here is a measurement of time.
A kernel that spills makes the exit code 1.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from bouton.ops.triton_report import OPS, costs, table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("op", nargs="?", choices=OPS)
    parser.add_argument("--targets", action="store_true", help="the variants that the targets name, nothing else")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    try:
        import torch
        import triton
    except ImportError as error:
        sys.exit(f"error: {error.name} is not installed")
    rows = []
    for op in (options.op,) if options.op else OPS:
        for row in costs(op, options.targets):
            rows.append(row)
            print(f"{op} {row['variant']}: {row['kernel']}", file=sys.stderr, flush=True)
    print(table(rows))
    if options.json:
        head = json.dumps({"target": "sm_90", "triton": triton.__version__, "torch": torch.__version__})
        lines = ",\n".join(json.dumps(row) for row in rows)
        options.json.write_text(f'{head[:-1]}, "kernels": [\n{lines}\n]}}\n')
    return int(any(row["spilled"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
