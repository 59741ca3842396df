"""Speed: figures are there, positive and about what they say; energy is read or declared unreadable."""

import time

import pytest
import torch

from bouton.evaluation import evaluate
from bouton.evaluation.tasks import speed
from bouton.evaluation.tasks.speed import timed
from bouton.runs import Run

OPTIONS = {"speed": {"seconds": 0.02, "contexts": [4, 32]}}


def test_timed_calls_are_as_long_as_they_are() -> None:
    times, _ = timed(lambda: time.sleep(0.004), 0.03, torch.device("cpu"))
    assert 5 <= len(times) <= 10 and min(times) >= 0.004


def test_figures_of_training_and_decoding(stories: Run) -> None:
    found = evaluate(stories, ["speed"], OPTIONS)["speed"]
    numbers = found["numbers"]
    assert numbers["training_tokens_per_second"] > 0 and numbers["peak_memory_bytes"] > 1e6
    assert numbers["decode_seconds"] == numbers["decode_seconds_32_tokens"] > 0
    assert [row["tokens"] for row in found["tables"]["contexts"]] == [4, 32]
    for row in found["tables"]["contexts"]:
        assert row["decode_seconds_low"] <= row["decode_seconds"] <= row["decode_seconds_high"]
    assert found["machine"]["threads"] == torch.get_num_threads() and found["machine"]["name"]


def test_energy_is_read_or_its_absence_said(stories: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Meter:
        def __init__(self, device: torch.device) -> None: ...

        def joules(self) -> float | None:
            return value

    monkeypatch.setattr(speed, "EnergyMeter", Meter)
    value: float | None = 12.0
    found = evaluate(stories, ["speed"], OPTIONS)["speed"]
    assert found["numbers"]["training_joules_per_token"] > 0 and found["numbers"]["decode_joules_per_token"] > 0
    value = None
    found = evaluate(stories, ["speed"], OPTIONS, again=True)["speed"]
    assert not any("joules" in name for name in found["numbers"])
    assert any("energy cannot be read on this machine" in note for note in found["notes"])


def test_another_machine_measures_again(stories: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from bouton.evaluation import runner

    fresh: list[bool] = []
    evaluate(stories, ["speed"], OPTIONS)
    monkeypatch.setattr(runner, "_machine", lambda subject: {"name": "another"})
    evaluate(stories, ["speed"], OPTIONS, report=lambda label, result, new: fresh.append(new))
    assert fresh == [True]
