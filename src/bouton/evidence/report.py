"""``report``: what a study found, as Markdown, as one HTML file, as figures, and as numbers."""

from __future__ import annotations

import math
from pathlib import Path

from bouton.evidence import provenance
from bouton.evidence.document import Document, Heading, Items, Paragraph, Picture, Table
from bouton.evidence.figures import draw_all
from bouton.evidence.frame import CRASHED, FINISHED, TRACEBACK, load
from bouton.evidence.metrics import DEFAULT
from bouton.evidence.prices import CURRENCIES, Price
from bouton.evidence.statistics import FEW, HELPS, HURTS, SAME, WILCOXON_FROM, Comparison
from bouton.evidence.study import Study, analyse, plain, table
from bouton.files import write_json, write_text

_CAPTIONS = {
    "forest": "Difference to the baseline, mean and 95 % interval, at equal cost in four currencies.",
    "curves": "The metric during training and its paired difference to the baseline: mean and 95 % band over seeds.",
    "pareto": "Paired difference and 95 % interval against cost. Thick grey: the plain body with more steps; an arm on "
    "the better side of that line earns its cost. Dashed: what no other run beats in both.",
    "synergy": "Pairs of mechanisms: single effects on the diagonal; elsewhere the joint effect minus their sum, with "
    "95 % interval. Bold: significant after Holm's correction.",
}


def report(
    folder: str | Path,
    metric: str = DEFAULT,
    *,
    baseline: str | None = None,
    alpha: float = 0.05,
    interest: float | None = None,
    out: str | Path | None = None,
) -> Path:
    """Write ``report.md``, ``report.html``, ``figures/*.png``, ``statistics.json`` and ``statistics.csv``.

    Args:
        folder: a sweep; everything is computed from its run folders.
        metric: column of ``load``.
        baseline: the arm that all are compared with; None: the one without mechanisms.
        alpha: level of the tests.
        interest: smallest effect of interest, in the metric's unit; None: the metric's own.
        out: where to write; None: into ``folder``.

    Returns:
        The path of ``report.html``.

    Raises:
        BoutonError: no run, none finished, an unknown metric or baseline.
    """
    source = Path(folder).expanduser()
    study = analyse(load(source), metric, baseline=baseline, alpha=alpha, interest=interest)
    target = source if out is None else Path(out).expanduser()
    target.mkdir(parents=True, exist_ok=True)
    figures = draw_all(study, target / "figures")
    document = compose(study, source, figures)
    write_json(target / "statistics.json", plain(study))
    write_text(target / "statistics.csv", table(study).to_csv(index=False))
    write_text(target / "report.md", document.markdown(target))
    write_text(target / "report.html", document.html())
    return target / "report.html"


def compose(study: Study, source: Path, figures: dict[str, Path]) -> Document:
    """The document of a study."""
    document = Document(f"Report of {source.resolve().name}")
    runs = study.frame
    finished = runs["status"].eq(FINISHED).sum()
    seeds = ", ".join(map(str, sorted(runs["seed"].unique())))
    document.add(
        Paragraph(
            f"{finished} of {len(runs)} runs finished; {len(study.arms)} arms, seeds {seeds}. Metric: "
            f"**{study.measure.title}** in {study.measure.unit} (`{study.measure.column}`), "
            f"{'lower' if study.measure.lower_is_better else 'higher'} is better. Intervals are 95 %."
        ),
        Heading("Verdicts"),
        Items(tuple(verdict_line(study, one) for one in study.comparisons)),
    )
    _picture(document, figures, "forest")
    document.add(Heading("Arms"), _arms(study))
    _picture(document, figures, "curves")
    document.add(Heading("Differences to the baseline, at equal tokens"), _differences(study))
    document.add(Heading("Every gain beside its price"), *_prices(study))
    _picture(document, figures, "pareto")
    if study.synergies:
        document.add(Heading("Pairs"), _synergies(study))
        _picture(document, figures, "synergy")
    if study.evaluations:
        document.add(Heading("Evaluation tasks"), *_evaluations(study))
    if problems := _problems(study):
        document.add(Heading("What is missing"), Items(problems))
    document.add(Heading("How this was computed"), Items(_method(study)))
    document.add(Heading("Where it was run"), Items(provenance.lines(runs)))
    return document


def verdict_line(study: Study, one: Comparison) -> str:
    """One arm in words: the verdict at equal tokens, and what becomes of it at equal cost."""
    unit = study.measure.unit
    if one.n < 2:
        return (
            f"**{one.arm}: {one.verdict}**. {one.n} paired seed{'s' if one.n != 1 else ''}; a test needs two at least."
        )
    direction = "better" if one.difference * study.measure.sign > 0 else "worse"
    text = (
        f"**{one.arm}: {one.verdict}**. {abs(one.difference):.4f} {unit} {direction} than {one.baseline} "
        f"({_range(one.low, one.high)}; {_p(one.p_holm)} after Holm, {one.n} seeds)"
    )
    if one.verdict == SAME:
        text += f"; any difference is smaller than {study.measure.interest:g}"
    if one.verdict in (HELPS, HURTS) and abs(one.difference) < study.measure.interest:
        text += f"; smaller than {study.measure.interest:g}, so of little consequence"
    if one.verdict == FEW:
        text += f"; {_needed(study, one)}"
    others = [f"{_equal(price)}: {price.comparison.verdict}" for currency, price in study.prices[one.arm].items()
              if currency != "tokens" and price.comparison is not None]  # fmt: skip
    return text + (f". At {'; at '.join(others)}" if others else "") + "."


def _equal(price: Price) -> str:
    return f"equal {CURRENCIES[price.currency]} ({price.ratio:.2f}×)"


def _needed(study: Study, one: Comparison) -> str:
    as_seen = f"about {one.seeds_needed} seeds" if one.seeds_needed else "more than 1,000 seeds"
    interest = f"about {one.seeds_for_interest}" if one.seeds_for_interest else "more than 1,000"
    return f"80 % power needs {as_seen} if the effect is as observed, {interest} for one of {study.measure.interest:g}"


def _arms(study: Study) -> Table:
    controls = set(study.frame.loc[study.frame["control"].notna(), "arm"])
    rows, classes = [], []
    for arm, found in study.arms.items():
        runs = study.frame[(study.frame["arm"] == arm) & (study.frame["status"] == FINISHED)]
        mean = runs[["parameters", "training_flops", "tokens", "tokens_per_second", "wall_seconds",
                     "peak_memory_bytes"]].apply(_mean)  # fmt: skip
        rows.append((
            arm, str(found.n), f"{found.mean:.4f}", _number(found.sd), _range(found.low, found.high),
            _scaled(mean["parameters"], 1e6, "M"), _scaled(mean["tokens"], 1e6, "M", 3),
            f"{mean['training_flops']:.3g}" if math.isfinite(mean["training_flops"]) else "",
            f"{mean['tokens_per_second']:,.0f}" if math.isfinite(mean["tokens_per_second"]) else "",
            _scaled(mean["wall_seconds"], 1, "s", 0), _scaled(mean["peak_memory_bytes"], 2**30, "GiB"),
        ))  # fmt: skip
        classes.append("control" if arm in controls else "")
    columns = ("arm", "seeds#", "mean#", "sd#", "95 % interval#", "parameters#", "tokens#", "FLOPs#", "tokens/s#",
               "wall-clock#", "peak memory#")  # fmt: skip
    return Table(columns, tuple(rows), tuple(classes))


def _differences(study: Study) -> Table:
    rows = []
    for one in study.comparisons:
        rows.append((
            one.arm, one.baseline, str(one.n), _signed(one.difference), _range(one.low, one.high), _p_value(one.p),
            _p_value(one.p_holm), "" if one.p_wilcoxon is None else _p_value(one.p_wilcoxon),
            f"{_number(one.d_z, 2)} {_range(one.d_z_low, one.d_z_high, 2)}".strip(), _p_value(one.p_equivalence),
            _count(one.seeds_needed, one), _count(one.seeds_for_interest, one), one.verdict,
        ))  # fmt: skip
    columns = ("arm", "baseline", "pairs#", "difference#", "95 % interval#", "p (paired t)#", "p (Holm)#",
               "p (Wilcoxon)#", "d_z [95 %]#", "p (equivalence)#", "seeds, as observed#",
               f"seeds for {study.measure.interest:g}#", "verdict")  # fmt: skip
    return Table(columns, tuple(rows), tuple(_row_class(one.verdict) for one in study.comparisons))


def _count(number: int | None, one: Comparison) -> str:
    return "" if one.verdict != FEW or one.n < 2 else str(number) if number else "> 1,000"


def _prices(study: Study) -> tuple[Table, Items]:
    rows = []
    for arm, entry in study.prices.items():
        for currency, price in entry.items():
            one = price.comparison
            if one is None:
                cells = ("", "", "", "not run", price.reason)
            else:
                cells = (
                    _signed(one.difference),
                    _range(one.low, one.high),
                    _p_value(one.p_holm),
                    price.source,
                    one.verdict,
                )
            ratio = f"{price.ratio:.3f}×" if math.isfinite(price.ratio) else ""
            rows.append((arm if currency == "tokens" else "", f"equal {CURRENCIES[currency]}", ratio, *cells))
    classes = tuple(
        _row_class(price.comparison.verdict) if price.comparison is not None else ""
        for entry in study.prices.values()
        for price in entry.values()
    )
    columns = ("arm", "compared at", "arm costs#", "difference#", "95 % interval#", "p (Holm)#",
               "baseline's figure from", "verdict")  # fmt: skip
    notes = Items((
        "The arm's cost is that of a training token relative to the baseline's; wall-clock is training speed as "
        "measured, so it knows the machine, its kernels and whatever else ran there.",
        "At equal FLOPs or wall-clock the baseline gets as many more tokens as the arm costs more, in a run whose "
        "schedule ends there; between two such budgets its loss is interpolated seed by seed.",
        "Where the arm costs less, the baseline's loss is read off its own learning curve, whose schedule had not "
        "ended there: that flatters the arm.",
    ))  # fmt: skip
    return Table(columns, tuple(rows), classes), notes


def _synergies(study: Study) -> Table:
    words = {HELPS: "more than the sum", HURTS: "less than the sum", SAME: "the sum", FEW: FEW}
    rows = tuple(
        (f.arm, str(f.comparison.n), _signed(f.comparison.difference), _range(f.comparison.low, f.comparison.high),
         _p_value(f.comparison.p), _p_value(f.comparison.p_holm), words[f.comparison.verdict])
        for f in study.synergies
    )  # fmt: skip
    columns = (
        "pair",
        "seeds#",
        "joint effect minus sum#",
        "95 % interval#",
        "p (paired t)#",
        "p (Holm)#",
        "the pair is",
    )
    return Table(columns, rows, tuple(_row_class(f.comparison.verdict) for f in study.synergies))


def _evaluations(study: Study) -> tuple[Table, Items]:
    rows, shown = [], ""
    for one in study.evaluations:
        name = f"{one.task}: {one.number}"
        found, difference = one.summary, one.comparison
        rows.append((
            "" if name == shown else name, one.arm, str(found.n), f"{found.mean:.4g}", _number(found.sd),
            *(("", "", "", "") if difference is None else
              (_signed(difference.difference), _range(difference.low, difference.high), _p_value(difference.p),
               _p_value(difference.p_holm))),
        ))  # fmt: skip
        shown = name
    columns = ("number", "arm", "seeds#", "mean#", "sd#", "difference#", "95 % interval#", "p (paired t)#",
               "p (Holm)#")  # fmt: skip
    notes = ["Measured by `bouton eval` with the best checkpoint of each run. Exploratory: p is corrected over the "
             "arms of one number, not over the numbers, and no verdict is given."]  # fmt: skip
    if bound := sorted({one.task for one in study.evaluations if one.machine_bound}):
        notes.append(f"{', '.join(bound)}: as much about the machine, and what else ran on it, as about the model.")
    return Table(columns, tuple(rows)), Items(tuple(notes))


def _problems(study: Study) -> tuple[str, ...]:
    found = []
    for run in study.frame.to_dict("records"):
        if run["status"] == CRASHED:
            found.append(f"`{run['run']}` crashed: {run['error']} (see `{TRACEBACK}` in its folder)")
        elif run["status"] != FINISHED:
            found.append(f"`{run['run']}` has not finished")
        elif run["ended"] != FINISHED:
            found.append(f"`{run['run']}` ended before its last step: {run['ended']}")
    for entry in study.prices.values():
        for price in entry.values():
            if price.comparison is not None and price.comparison.unpaired:
                left_out = "; ".join(price.comparison.unpaired)
                found.append(f"{price.comparison.arm} at {_equal(price)}: left out {left_out}")
    finished = study.frame[study.frame["status"] == FINISHED]
    for arm, seed in finished.loc[finished.duplicated(["arm", "seed"]), ["arm", "seed"]].drop_duplicates().values:
        found.append(f"{arm}, seed {seed} was run several times: the last folder in alphabetical order counts")
    return tuple(dict.fromkeys(found))


def _method(study: Study) -> tuple[str, ...]:
    interest, alpha = f"{study.measure.interest:g} {study.measure.unit}", f"{study.alpha:g}"
    return (
        "Runs of one seed share their initial weights (where shapes agree) and the order of their data; differences "
        "are taken within seeds. Seeds that one side lacks are left out and named.",
        f"**helps**, **hurts**: the paired t test rejects at {alpha} after Holm's correction over all arms that are "
        f"compared in the same way. Wilcoxon's signed-rank test is shown from {WILCOXON_FROM} seeds on.",
        f"**{SAME}**: it does not, and two one-sided t tests (at {alpha}) show that the difference lies within ± "
        f"{interest}, the smallest effect of interest.",
        f"**{FEW}**: neither; zero and differences that would matter are both still possible. The numbers of seeds are "
        f"those for 80 % power at the first step of Holm's correction ({alpha} / number of arms).",
        "d_z: mean difference / standard deviation of the differences, with its interval from the non-central t.",
    )


def _picture(document: Document, figures: dict[str, Path], name: str) -> None:
    if name in figures:
        document.add(Picture(figures[name], _CAPTIONS[name]))


def _row_class(verdict: str) -> str:
    return verdict if verdict in (HELPS, HURTS) else ""


def _mean(values: object) -> float:
    import pandas as pd

    return float(pd.to_numeric(pd.Series(values), errors="coerce").mean())


def _number(value: float, digits: int = 4) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else ""


def _signed(value: float) -> str:
    return f"{value:+.4f}" if math.isfinite(value) else ""


def _range(low: float, high: float, digits: int = 4) -> str:
    return f"[{low:.{digits}f}, {high:.{digits}f}]" if math.isfinite(low) and math.isfinite(high) else ""


def _p_value(p: float) -> str:
    return "" if math.isnan(p) else "< 0.0001" if p < 1e-4 else f"{p:.4f}"


def _p(p: float) -> str:
    text = _p_value(p)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def _scaled(value: float, unit: float, name: str, digits: int = 2) -> str:
    return f"{value / unit:.{digits}f} {name}" if math.isfinite(value) else ""
