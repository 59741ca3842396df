"""The page of all mechanisms is what the classes say now, and shows what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bouton.mechanisms import docs, registry

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.skipif(not (REPOSITORY / docs.PAGE).is_file(), reason="not in a checkout")
def test_the_page_is_up_to_date() -> None:
    assert (REPOSITORY / docs.PAGE).read_text() == docs.page(REPOSITORY), "run python -m bouton.mechanisms.docs"


def test_every_mechanism_parameter_and_skip_is_on_it() -> None:
    text = docs.page(REPOSITORY)
    for name, cls in registry.mechanisms().items():
        if not cls.__module__.startswith("bouton."):
            continue
        section = text.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        for parameter in cls.Params.specs():
            assert f"| `{parameter}` |" in section
        for reason in cls.skips.values():
            assert reason in section


def test_costs_and_effects_come_from_what_was_recorded(tmp_path: Path) -> None:
    assert docs.costs(tmp_path) == []
    arm = {"flops_per_token": 100.0, "parameters": 10, "state_bytes": 8}
    time = {"wall": {"ratio": 1.25, "quartiles": [1.2, 1.3]}}
    record = {
        "arms": {
            "none": {**arm, "ratio": {}},
            "presyn": {**arm, "flops_per_token": 150.0, "ratio": time},
        },
        "rounds": 7,
        "batch": [4, 32],
        "overrides": ["model.num_layers=2"],
        "kernels": {"fatigue_attention": "torch"},
        "machine": {"cpu": "a processor", "threads": 1},
    }
    (tmp_path / docs.COSTS).parent.mkdir(parents=True)
    (tmp_path / docs.COSTS).write_text(json.dumps(record))
    text = "\n".join(docs.costs(tmp_path))
    assert "| `presyn` | 1.25 (1.20 to 1.30) | 1.50 | 1.00 | 1.00 |  |  |" in text
    assert "7 interleaved optimizer steps on 4 x 32 tokens, a processor, 1 thread(s)" in text
    assert "Measured apart" not in text
    apart = {"rounds": 5, "kernels": {"lif": "rust"}, "machine": {"cpu": "another", "threads": 2}}
    added = {**record, "arms": {**record["arms"], **{name: {**arm, "ratio": time, **apart} for name in ("lif", "x")}}}
    (tmp_path / docs.COSTS).write_text(json.dumps(added))
    text = "\n".join(docs.costs(tmp_path))
    assert (
        "Measured apart, in turns with `none` as well: `lif`, `x` (5 steps, another, 2 thread(s); kernels: lif rust)."
        in text
    )
    (tmp_path / docs.EFFECTS).parent.mkdir(parents=True)
    (tmp_path / docs.EFFECTS).write_text(
        "equal,arm,difference,low,high,verdict,n\ntokens,presyn,-0.05,-0.07,-0.03,helps,3\nflops,presyn,1,1,1,hurts,3\n"
    )
    assert "-0.0500 [-0.0700, -0.0300] | helps, 3 seeds |" in "\n".join(docs.costs(tmp_path))
