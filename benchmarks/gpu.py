"""Check every execution of every op against its float64 definition, then time it against its peers.

    python benchmarks/gpu.py [OP] [--shapes issue|sweep|all|small] [--dtype bfloat16 float32] [--json FILE]

For bare GPU machines: needs torch and ``bouton.ops`` alone (set PYTHONPATH=src). The cases are those of ``bouton
bench``. ``--device cpu --small`` runs the script itself through on any machine. A wrong kernel makes the exit code 1.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from bouton.errors import BoutonError
from bouton.ops.benchmarks import SHAPES, Settings, cases, measure_all
from bouton.ops.benchmarks.report import document, table

DTYPES = {"cuda": ("bfloat16", "float32"), "cpu": ("float32",)}


def progress(done: int, total: int, text: str) -> None:
    print(f"[{done}/{total}] {text}", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("op", nargs="?")
    parser.add_argument("--device", default="cuda", choices=tuple(DTYPES))
    parser.add_argument("--shapes", default="issue", choices=SHAPES)
    parser.add_argument("--small", dest="shapes", action="store_const", const="small")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES["cuda"])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = options.device
    if device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here; --device cpu --small runs the script itself through")
        return 0
    torch.backends.cuda.matmul.allow_tf32 = False
    documents = []
    for name in options.dtype or DTYPES[device]:
        settings = Settings(device, getattr(torch, name), options.rounds, options.shapes, options.shapes != "small")
        results = measure_all(cases(options.op, device, options.shapes), settings, progress)
        documents.append(document(results, settings))
        print(table(results), flush=True)
        if options.json:  # after every dtype: what was measured survives an interruption
            options.json.write_text(json.dumps(documents, indent=2) + "\n")
    return int(any(result["wrong"] for found in documents for result in found["results"]))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BoutonError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")
