"""Compile the Triton kernels of fatigue attention for a Hopper GPU (sm_90) and print what they became.

    python benchmarks/gpu_offline.py [--targets] [--json benchmarks/results/fatigue_attention_sm90.json]

Needs triton, no GPU. Registers and spilled bytes are per thread, shared memory per block; the other columns are machine
instructions per pair of query and key on the shortest way through a kernel's loop. Nothing here is a measurement of
time.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from bouton.ops.fatigue_attention.triton_cost import OTHERS, TARGETS, costs, table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", action="store_true", help="bfloat16, D=64 and 128, both rules, nothing else")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    try:
        import torch
        import triton
    except ImportError as error:
        sys.exit(f"error: {error.name} is not installed")
    rows = []
    for row in costs(TARGETS if options.targets else (*TARGETS, *OTHERS)):
        rows.append(row)
        print(f"{row['variant']}: {row['kernel']}", file=sys.stderr, flush=True)
    print(table(rows))
    if options.json:
        head = json.dumps({"target": "sm_90", "triton": triton.__version__, "torch": torch.__version__})
        lines = ",\n".join(json.dumps(row) for row in rows)
        options.json.write_text(f'{head[:-1]}, "kernels": [\n{lines}\n]}}\n')
    return int(any(row["spilled"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
