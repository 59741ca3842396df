"""Tables and the picture of this study from its runs.

    python experiments/substrate_text/collect.py <folder with the runs, each evaluated with tasks=[ngrams]>

Writes results/perplexity.csv (a row for each run and method, on the second half of the validation rows),
results/curves.csv (validation over training, all rows) and curves.png beside this file.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import bouton

HERE = Path(__file__).parent
SHOWN = {
    "positions": "four positions",
    "assemblies": "with assemblies",
    "perceptron": "four positions, perceptron rule",
}


def main(root: Path) -> None:
    table, curves = [], []
    for folder in sorted(path for path in root.iterdir() if (path / "summary.json").exists()):
        arm, _, seed = folder.name.rpartition("_seed")
        run = bouton.load(folder, "last")
        found = run.evaluation["ngrams"]
        costs = run.summary["costs"]
        for row in found["tables"]["ngrams"]:
            table.append(
                {
                    "arm": arm, "seed": int(seed), "method": row["method"], "perplexity": row["perplexity"],
                    "share": found["numbers"]["share"], "edges": costs["parameters"],
                    "seconds": costs["train_seconds"], "tokens_per_second": costs["tokens_per_second"],
                }
            )  # fmt: skip
        losses = run.metrics[["step", "val/loss"]].dropna()
        curves += [
            {"arm": arm, "seed": int(seed), "step": int(step), "perplexity": float(np.exp(loss))}
            for step, loss in losses.itertuples(index=False)
        ]
    (HERE / "results").mkdir(exist_ok=True)
    numbers, over_time = pd.DataFrame(table), pd.DataFrame(curves)
    numbers.to_csv(HERE / "results" / "perplexity.csv", index=False)
    over_time.to_csv(HERE / "results" / "curves.csv", index=False)
    print(numbers.groupby(["arm", "method"])["perplexity"].agg(["mean", "min", "max"]).round(2).to_string())
    draw(numbers, over_time)


def draw(numbers: pd.DataFrame, curves: pd.DataFrame) -> None:
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for index, (arm, label) in enumerate(SHOWN.items()):
        for seed, line in curves[curves.arm == arm].groupby("seed"):
            axes.plot(
                line.step, line.perplexity, color=f"C{index}", marker="o", ms=3, label=label if seed == 0 else None
            )
    baselines = numbers[numbers.arm == "positions"].groupby("method")["perplexity"].mean()
    for name in ("unigram", "kn2", "kn3", "kn4"):
        axes.axhline(baselines[name], color="0.6", lw=0.8, ls="--")
        axes.text(curves.step.max(), baselines[name], f" {name}", va="center", fontsize=8, color="0.4")
    axes.set(xlabel="steps of 8,192 tokens", ylabel="validation perplexity", yscale="log")
    axes.legend(frameon=False)
    figure.savefig(HERE / "curves.png", dpi=130)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
