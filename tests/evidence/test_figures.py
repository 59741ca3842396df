"""Figures are drawn of what there is, and left out where there is nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure
from synthetic import make_study

from bouton.evidence.figures import draw_all, forest, learning_curves, pareto
from bouton.evidence.frame import load
from bouton.evidence.study import Study, analyse


@pytest.fixture
def study(tmp_path: Path) -> Study:
    effects = {"none": 0.0, "hebb": -0.05, "septin": 0.02}
    costs = {"hebb": {"slower": 1.3, "flops": 1.1}}
    return analyse(load(make_study(tmp_path / "s", effects, range(4), costs=costs, controls=True)))


def lines(figure: Figure | None, panel: int) -> dict[str, list[float]]:
    assert figure is not None
    return {str(line.get_label()): list(line.get_ydata()) for line in figure.axes[panel].get_lines()}


def test_curves_are_means_over_seeds_and_the_difference_is_paired(study: Study) -> None:
    figure = learning_curves(study)
    assert lines(figure, 0)["hebb"][-1] == pytest.approx(study.arms["hebb"].mean)
    (hebb,) = [one for one in study.comparisons if one.arm == "hebb"]
    assert lines(figure, 1)["hebb"][-1] == pytest.approx(hebb.difference)
    assert "none@time" not in lines(figure, 0)


def test_forest_has_a_panel_per_currency_and_a_row_per_arm(study: Study) -> None:
    figure = forest(study)
    assert figure is not None
    assert [axes.get_title() for axes in figure.axes] == [
        "equal tokens", "equal FLOPs", "equal wall-clock", "equal parameters",
    ]  # fmt: skip
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["hebb", "septin"]


def test_pareto_places_arms_by_cost(study: Study) -> None:
    figure = pareto(study)
    assert figure is not None
    placed = {box.get_label(): box.lines[0].get_xdata()[0] for box in figure.axes[1].containers}
    assert placed["hebb"] == pytest.approx(1.3)
    assert placed["none@time"] == pytest.approx(1.3)
    assert placed["none"] == 1.0


def test_no_pairs_no_heat_map_and_an_old_one_is_removed(study: Study, tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "synergy.png").write_bytes(b"old")
    assert set(draw_all(study, tmp_path / "figures")) == {"forest", "curves", "pareto"}
    assert not (tmp_path / "figures" / "synergy.png").exists()


def test_one_seed_is_drawn_without_intervals(tmp_path: Path) -> None:
    study = analyse(load(make_study(tmp_path / "s", {"none": 0.0, "hebb": 0.1}, [0])))
    assert set(draw_all(study, tmp_path / "figures")) == {"forest", "curves", "pareto"}
