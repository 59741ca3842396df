"""Tables and pictures of a study: means over seeds of what the runs of each domain have measured.

    python experiments/substrate_domains/collect.py runs/domains

``runs/domains`` holds a sweep for each domain. Writes ``results/*.csv``, ``results/tables.md`` and ``results/*.png``
beside this file.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import pandas as pd
from omegaconf import OmegaConf

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Collect all finished runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path, help="folder of the sweeps")
    options = parser.parse_args()
    folders = sorted(path.parent for path in options.study.glob("*/*/summary.json"))
    if not folders:
        parser.error(f"{options.study}: there is no finished run")
    RESULTS.mkdir(exist_ok=True)
    arms: dict[str, list[Path]] = {}
    for folder in folders:
        domain = OmegaConf.load(folder / "config.yaml").domain
        arms.setdefault("_".join(filter(None, (domain.name, domain.get("code")))), []).append(folder)
    texts = []
    for arm, runs in arms.items():
        texts.append(write_arm(arm, runs))
        for picture in sorted(runs[0].glob("*.png")):
            shutil.copyfile(picture, RESULTS / f"{arm}_{picture.name}")
    (RESULTS / "tables.md").write_text("\n".join(texts))


def write_arm(arm: str, runs: list[Path]) -> str:
    """``<arm>.csv`` with every seed and ``<arm>_facts.csv``; returns the table of means as Markdown."""
    seeds = [int(OmegaConf.load(run / "config.yaml").seed) for run in runs]
    tables = [pd.read_csv(run / "results.csv").assign(seed=seed) for run, seed in zip(runs, seeds, strict=True)]
    whole = pd.concat(tables)
    whole.to_csv(RESULTS / f"{arm}.csv", index=False)
    facts = pd.DataFrame([json.loads((run / "summary.json").read_text())["facts"] for run in runs], index=seeds)
    facts.rename_axis("seed").to_csv(RESULTS / f"{arm}_facts.csv")
    columns = [name for name in whole if name not in ("method", "seed")]
    groups = whole.groupby("method", sort=False)[columns]
    mean, sd = groups.mean(), groups.std()
    lines = [
        f"## {arm}, {len(seeds)} seeds: share right in %, mean ± standard deviation",
        "",
        "| | " + " | ".join(columns) + " |",
    ]
    lines.append("|---" * (len(columns) + 1) + "|")
    for method in mean.index:
        cells = (f"{100 * mean.loc[method, c]:.1f} ± {100 * sd.loc[method, c]:.1f}" for c in columns)
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    numbers = facts.select_dtypes("number").median()
    lines += [
        "",
        "Facts, medians over the seeds:",
        "",
        *(f"- {name}: {number(value)}" for name, value in numbers.items()),
        "",
    ]
    return "\n".join(lines)


def number(value: float) -> str:
    """A fact: whole numbers in full."""
    return f"{value:,.0f}" if value == int(value) else f"{value:.4g}"


if __name__ == "__main__":
    main()
