"""Makes the run folders importable under importlib mode, and a sweep of them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two arms of two seeds; the last run has not finished."""
    from folders import make_run

    root = tmp_path_factory.mktemp("dashboards") / "grid"
    for mechanism in ("none", "presyn"):
        for seed in (0, 1):
            make_run(root / f"{mechanism}_seed{seed}", mechanism, seed, finished=(mechanism, seed) != ("presyn", 1))
    return root
