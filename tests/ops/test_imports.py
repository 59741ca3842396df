from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_ops_and_their_benchmark_need_torch_alone(tmp_path):
    """On a bare GPU machine there is torch and nothing else; the benchmark also shows that it runs through."""
    blocked = ("lightning", "hydra", "omegaconf", "pandas", "rich", "torchmetrics", "datasets", "tokenizers")
    result = tmp_path / "result.json"
    script = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked!r})); "  # None: an import of it fails
        f"sys.argv = ['gpu.py', '--device', 'cpu', '--small', '--rounds', '1', '--json', {str(result)!r}]; "
        f"import runpy; runpy.run_path({str(ROOT / 'benchmarks' / 'gpu.py')!r}, run_name='__main__')"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (recorded,) = json.loads(result.read_text())
    assert {entry["op"] for entry in recorded["results"]} >= {"fatigue_attention", "fast_weights", "oscillate"}
    assert all(entry["errors"] and not entry["wrong"] for entry in recorded["results"])
    checked_alone = [entry for entry in recorded["results"] if not entry["passes"]]
    assert len(checked_alone) == 2 and {entry["op"] for entry in checked_alone} == {"lif"}
