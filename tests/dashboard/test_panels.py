"""Panels follow the names that were logged; mechanisms bring theirs."""

from __future__ import annotations

from bouton.dashboard import layout
from bouton.dashboard.panels import FIXED
from bouton.mechanisms import registry


def test_only_what_was_logged_has_a_panel() -> None:
    sections = layout(["val/loss", "train/lr", "val/perplexity"])
    assert [(s.title, [p.title for p in s.panels]) for s in sections] == [
        ("Losses", ["Loss"]),
        ("Optimization", ["Learning rate"]),
    ]
    assert sections[0].panels[0].metrics == ("val/loss",)
    assert layout([]) == []


def test_every_mechanism_has_a_section_with_what_it_says_about_its_vitals() -> None:
    for name, cls in registry.mechanisms().items():
        (section,) = layout(f"vitals/{name}/{vital}" for vital in cls.vital_names)
        assert section.title == f"Vitals of {name}"
        assert {p.metrics[0]: p.doc for p in section.panels} == {
            f"vitals/{name}/{vital}": doc for vital, doc in cls.vital_names.items()
        }


def test_unknown_names_are_shown_all_the_same() -> None:
    sections = layout(["vitals/gone/level", "bonus"])
    assert [(s.title, s.panels[0].metrics) for s in sections] == [
        ("Vitals of gone", ("vitals/gone/level",)),
        ("Others", ("bonus",)),
    ]


def test_every_name_that_a_run_logs_has_its_place() -> None:
    names = {name for section in FIXED for panel in section.panels for name in panel.metrics}
    assert names >= {"train/loss", "val/loss", "train/lr", "train/grad_norm", "cost/tokens_per_second", "cost/mfu"}
