"""Entity F1 of the bodies of a study on held-out synthetic texts and on other corpora, beside regular expressions.

    python train.py -m experiment=real_sam/pii_study run_dir=runs/pii
    python experiments/pii/compare.py runs/pii --texts <pii_synth_a.jsonl> <wnut17_test.tsv>

Writes ``results/results.json``, ``results/table.md`` and ``results/f1.png`` beside this file.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from bouton.evaluation import evaluate
from bouton.runs import Run, load

matplotlib.use("Agg")
from matplotlib import pyplot as plt

RESULTS = Path(__file__).parent / "results"
SYNTHETIC = "synthetic"
NAMES = {"gru": "GRU", "spiking": "spiking", "transformer": "transformer"}


def main() -> None:
    """Measure every finished run of a study."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path, help="folder of the runs")
    parser.add_argument("--texts", type=Path, nargs="*", default=[], help="other labelled texts (JSON lines, CoNLL)")
    options = parser.parse_args()
    folders = sorted(path.parent for path in options.study.glob("**/summary.json"))
    records = [record(load(folder, device="cpu"), options.texts) for folder in folders]
    if not records:
        parser.error(f"{options.study}: there is no finished run")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "results.json").write_text(json.dumps(records, indent=1) + "\n")
    text = table(records)
    (RESULTS / "table.md").write_text(text)
    draw(records, RESULTS / "f1.png")
    print(text)


def record(run: Run, texts: Sequence[Path]) -> dict[str, Any]:
    """What is compared about one run: F1 on each set of texts, and what it cost."""
    scores = {}
    for name, options in ((SYNTHETIC, {}), *((path.stem, {"path": str(path)}) for path in texts)):
        result = evaluate(run, ["ner"], {"ner": options}, again=True)["ner"]
        numbers = ("f1", "precision", "recall", "rules_f1", "rules_precision", "rules_recall")
        scores[name] = {
            **{number: result["numbers"][number] for number in numbers},
            "types": result["tables"]["types"],
        }
    costs = run.summary["costs"]
    return {
        "body": str(run.config.model.body),
        "mechanisms": sorted(run.config.mechanism or {}),
        "seed": int(run.config.seed),
        "steps": int(run.summary["step"]),
        "parameters": costs["parameters"],
        "forward_mflops_per_token": costs["training_flops_per_token"] / 3e6,
        "seconds_per_step": costs["train_seconds"] / run.summary["step"],
        "scores": scores,
    }


def arms(records: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """The runs by what they differ in besides the seed."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for entry in records:
        name = " + ".join([NAMES[entry["body"]], *entry["mechanisms"]])
        groups.setdefault(name, []).append(entry)
    return groups


def spread(values: Iterable[float]) -> str:
    """Mean and standard deviation."""
    found = list(values)
    deviation = f" ± {statistics.stdev(found):.3f}" if len(found) > 1 else ""
    return f"{statistics.mean(found):.3f}{deviation}"


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """The comparison in Markdown: F1 (mean and standard deviation over seeds), and costs."""
    sets = list(records[0]["scores"])
    lines = [
        "| | parameters | forward MFLOPs per token | " + " | ".join(f"F1 {s}" for s in sets) + " |",
        "|---" * (3 + len(sets)) + "|",
    ]
    for name, runs in arms(records).items():
        f1 = [spread(run["scores"][s]["f1"] for run in runs) for s in sets]
        first = runs[0]
        costs = [f"{first['parameters']:,}", f"{first['forward_mflops_per_token']:.2f}"]
        seeds = f"{len(runs)} seed" + "s" * (len(runs) > 1)
        lines.append(f"| {name}, {seeds} | " + " | ".join([*costs, *f1]) + " |")
    rules = [f"{records[0]['scores'][s]['rules_f1']:.3f}" for s in sets]
    lines.append("| regular expressions | 0 | | " + " | ".join(rules) + " |")
    lines += ["", "| type, synthetic texts | entities | " + " | ".join(arms(records)) + " | regular expressions |"]
    lines.append("|---" * (3 + len(arms(records))) + "|")
    for index, row in enumerate(records[0]["scores"][SYNTHETIC]["types"]):
        means = [
            f"{statistics.mean(run['scores'][SYNTHETIC]['types'][index]['f1'] for run in runs):.3f}"
            for runs in arms(records).values()
        ]
        lines.append(f"| {row['type']} | {row['entities']} | " + " | ".join([*means, f"{row['rules_f1']:.3f}"]) + " |")
    return "\n".join(lines) + "\n"


def draw(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Bars of the mean F1, a point for each seed."""
    sets = list(records[0]["scores"])
    groups = arms(records)
    width = 0.8 / (len(groups) + 1)
    figure, axes = plt.subplots(figsize=(1.6 + 2.2 * len(sets), 3.6), layout="constrained")
    for place, (name, runs) in enumerate(groups.items()):
        xs = [index + place * width for index in range(len(sets))]
        values = [[run["scores"][s]["f1"] for run in runs] for s in sets]
        axes.bar(xs, [statistics.mean(v) for v in values], width * 0.9, label=name, alpha=0.8)
        for x, points in zip(xs, values, strict=True):
            axes.plot([x] * len(points), points, "k.", markersize=4)
    xs = [index + len(groups) * width for index in range(len(sets))]
    rules = [records[0]["scores"][s]["rules_f1"] for s in sets]
    axes.bar(xs, rules, width * 0.9, label="regular expressions", color="0.6")
    axes.set_xticks([index + width * len(groups) / 2 for index in range(len(sets))], sets)
    axes.set_ylabel("F1 of entities (exact span and type)")
    axes.set_ylim(0, 1)
    axes.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
