"""From the words of a study to its arms."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pytest

from bouton.errors import ConfigError
from bouton.evidence.grid.arms import builds, cross, expand, largest_set, with_refined
from bouton.mechanisms import Mechanism, Params, real, registry


def everything_goes(names: Sequence[str]) -> str | None:
    return None


def labels(entries: list[str], refusal=everything_goes) -> list[str]:
    return [planned.arm.label for planned in expand(entries, refusal)[0]]


def test_keywords_mean_the_registry() -> None:
    known = list(registry.mechanisms())
    assert labels(["none", "each"]) == ["none", *("+".join(with_refined([name])) for name in known)]
    pairs = labels(["pairs"])
    assert set(pairs) == {"+".join(with_refined(pair)) for pair in itertools.combinations(known, 2)}
    assert len(pairs) == len(set(pairs))
    assert labels(["everything"]) == ["+".join(known)]
    without = labels(["leave_one_out"])
    assert without[0] == "+".join(known[1:])
    assert len(without) == len(known)
    refines_hebb = {name for name in known if "hebb" in with_refined([name])}
    assert "bdnf" in refines_hebb
    assert without[known.index("hebb")] == "+".join(name for name in known if name not in refines_hebb)


def test_a_new_mechanism_takes_part_without_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Strength(Params):
        strength: float = real(0.5, "how much", low=0.0)

    class Newcomer(Mechanism):
        name: ClassVar[str] = "newcomer"
        summary: ClassVar[str] = "of another package"
        Params = Strength

    registry.mechanisms()
    monkeypatch.setattr(registry, "_registry", {**registry._registry, "newcomer": Newcomer})
    assert "newcomer" in labels(["each"])
    assert "newcomer" in labels(["everything"])[0]


def test_names_are_canonical_and_come_once() -> None:
    assert labels(["presyn+hebb", "hebb+presyn", "none", "none"]) == ["hebb+presyn", "none"]


def test_what_does_not_go_together_is_left_out_with_the_reason() -> None:
    def refusal(names: Sequence[str]) -> str | None:
        return "both want the mixer" if {"dendrite", "sparse"} <= set(names) else None

    arms, left_out = expand(["everything", "pairs"], refusal)
    everything = arms[0].arm.mechanism.split("+")
    assert "dendrite" in everything and "sparse" not in everything  # of two largest sets the first
    assert left_out == {
        "sparse in everything": "both want the mixer",
        "dendrite+sparse": "both want the mixer",
    }


def test_the_largest_set_builds_on_the_body() -> None:
    refusal = builds({"num_layers": 1, "hidden_size": 16, "num_heads": 2, "qk_norm": False})
    chosen, reasons = largest_set(refusal)
    assert "presyn" not in chosen and "qk_norm" in reasons["presyn"]
    assert refusal(chosen) is None and len(chosen) > 1


def test_overrides_of_an_entry() -> None:
    (planned,), _ = expand(["hebb hebb.rule=oja optimizer.lr=0.1"], everything_goes)
    assert planned.words == ("mechanism=hebb", "mechanism.hebb.rule=oja", "optimizer.lr=0.1")
    assert planned.arm.label == "hebb hebb.rule=oja optimizer.lr=0.1"


def test_a_parameter_is_swept_only_where_its_mechanism_is() -> None:
    arms, _ = expand(["none", "presyn"], everything_goes)
    swept = {"mechanism.presyn.tau_c": ["mechanism.presyn.tau_c=3", "mechanism.presyn.tau_c=6"]}
    assert [p.arm.label for p in cross(arms, swept)] == ["none", "presyn presyn.tau_c=3", "presyn presyn.tau_c=6"]
    rates = cross(arms, {"optimizer.lr": ["optimizer.lr=1", "optimizer.lr=2"]})
    assert [p.arm.label for p in rates][:2] == ["none optimizer.lr=1", "none optimizer.lr=2"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [("prezyn", "did you mean 'presyn'"), ("presyn+presyn", "twice"), ("hebb fast", "not of the form key=value")],
)
def test_wrong_entries(entry: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        expand([entry], everything_goes)
