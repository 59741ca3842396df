"""A curriculum decides on its own validation loss, alike on all ranks and after every interruption."""

from __future__ import annotations

import csv
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import standins
from test_resume import assert_same, assert_same_run, run_killed, weights

import bouton
from bouton.data import build_datamodule
from bouton.errors import CheckpointError, ConfigError
from bouton.models.build import build
from bouton.training import train
from bouton.training.callbacks.curriculum import FIELDS, Curriculum, Plateau, build_curriculum, check_phases
from bouton.training.curves import draw_curves, parted, phase_begins, read_series
from bouton.training.schedules import build_schedule

RULE: dict[str, Any] = {
    "patience": 3,
    "min_improvement": 0.01,
    "smoothing": 0.5,
    "min_evaluations": 1,
    "max_evaluations": None,
}


def over(losses: list[float], **changes: Any) -> int | None:
    """The evaluation (1 is the first) at which a phase with these losses is over."""
    rule = Plateau(**{**RULE, **changes})
    return next((number for number, loss in enumerate(losses, 1) if rule.add(loss) is not None), None)


# -- the rule ---------------------------------------------------------------------------------------------------------


def test_a_flat_curve_is_over_as_soon_as_the_rule_can_tell() -> None:
    assert over([3.0] * 9) == 4
    assert over([3.0] * 9, patience=1) == 2
    assert over([3.0] * 9, min_evaluations=7) == 7


def test_a_curve_that_falls_by_more_than_one_per_cent_goes_on() -> None:
    assert over([5.0 * 0.99**n for n in range(40)]) is None  # 3 % over three evaluations
    assert over([5.0 * 0.999**n for n in range(40)]) is not None
    assert over([5.0 * 0.99**n for n in range(40)], max_evaluations=11) == 11


def test_the_place_is_that_of_the_average() -> None:
    # falls for six evaluations, then stands: the average still falls by 2^-k of the last gap
    losses = [2.0 + max(0, 6 - n) * 0.5 for n in range(20)]
    average, averages = losses[0], []
    for loss in losses:
        average = 0.5 * average + 0.5 * loss
        averages.append(average)
    expected = next(n for n in range(3, 20) if (averages[n - 3] - averages[n]) / averages[n - 3] < 0.01)
    assert over(losses) == expected + 1
    assert over(losses, smoothing=0.0) == 10  # the losses as they are: 2.0 first at the 7th, three later at the 10th


def test_noise_that_stops_raw_losses_does_not_stop_the_average() -> None:
    losses = [4.0 - 0.06 * n + (0.15 if n % 4 == 3 else 0.0) for n in range(12)]
    assert over(losses, smoothing=0.0) == 4
    assert over(losses, smoothing=0.8, min_evaluations=5) is None


def test_a_rising_loss_ends_a_phase_and_the_average_begins_anew() -> None:
    assert over([2.0, 2.1, 2.2, 2.3]) == 4
    rule = Plateau(**RULE)
    for _ in range(4):
        rule.add(3.0)
    rule.smoothed.clear()
    assert rule.add(9.0) is None and rule.smoothed == [9.0]


# -- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two sources with sentences, of 60 documents each."""
    names, verbs = ("Tom", "Mia", "The cat", "A bird"), ("sees", "likes", "finds")
    for source, objects in (("tales", ("a tree", "the sea")), ("talks", ("a question", "an answer"))):
        stories = (
            " ".join(f"{names[(n + k) % 4]} {verbs[(n * k) % 3]} {objects[(n + k * k) % 2]}." for k in range(4 + n % 5))
            for n in range(60)
        )
        (tmp_path / f"{source}.txt").write_text("\n<|endoftext|>\n".join(stories))
    return tmp_path


def settings(corpus: Path, folder: str, **overrides: Any) -> dict[str, Any]:
    """A phase is over after two evaluations, whatever they say: at steps 4, 8 and 12 of 2 validations each."""
    data = {
        "name": "curriculum",
        "sources": {
            name: {"path": str(corpus / f"{name}.txt"), "separator": "<|endoftext|>"} for name in ("tales", "talks")
        },
        "phases": {
            "words": {"length": 4, "begin": "sentence", "weights": {"tales": 1}},
            "phrases": {"length": 8, "begin": "sentence", "weights": {"tales": 2, "talks": 1}},
            "talks": {"length": 24, "begin": "anywhere", "weights": {"talks": 1}},
        },
        "replay": 0.25, "seq_len": 24, "batch_size": 2, "val_fraction": 0.2, "val_weights": None, "val_tokens": 240,
        "phase_val_tokens": 240, "cache_dir": str(corpus / "cache"),
        "tokenizer": {"kind": "bytes", "vocab_size": 300, "train_bytes": 10000, "path": None},
    }  # fmt: skip
    rule = {**RULE, "patience": 1, "min_improvement": 0.99, "warmup_steps": 4, "stop": True}
    overrides = {"trainer__val_every": 2, "trainer__max_steps": 20, "schedule": "constant", **overrides}
    overrides = {"schedule__warmup_steps": 0, "trainer__val_batches": None, **overrides}
    overrides = {"model__dropout": 0.1, "callbacks__curriculum": rule, **overrides}
    return standins.config(corpus / folder, data=data, **overrides)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_phases_follow_each_other_and_the_run_folder_tells_them(corpus: Path) -> None:
    given = settings(corpus, "run")
    loss = standins.train(given)
    summary = json.loads((corpus / "run" / "summary.json").read_text())
    assert (summary["status"], summary["step"]) == ("curriculum completed", 12)
    told = summary["curriculum"]
    assert [(t["from"], t["to"], t["step"], t["first_step"]) for t in told["transitions"]] == [
        ("words", "phrases", 4, 6),
        ("phrases", "talks", 8, 10),
    ]
    assert (told["phase"], told["completed"]["from"], told["completed"]["step"]) == ("talks", "talks", 12)
    assert told["completed"]["loss"] == loss == summary["final"]["val_loss"]
    assert told["completed"]["phase_loss"] == summary["final"]["val_phase_loss"] != loss

    table = {int(row["step"]): row for row in rows(corpus / "run")}
    assert [int(float(table[step]["phase"])) for step in range(1, 13)] == [1] * 5 + [2] * 4 + [3] * 3
    full = given["optimizer"]["lr"]
    assert [float(table[step]["train/lr"]) / full for step in range(1, 13)] == pytest.approx(
        [1, 1, 1, 1, 1, 0.25, 0.5, 0.75, 1, 0.25, 0.5, 0.75]
    )
    transition = told["transitions"][0]
    assert transition["phase_loss"] == float(table[4]["val/phase_loss"])
    assert transition["loss"] == float(table[4]["val/loss"])

    series = read_series(corpus / "run" / "metrics.csv")
    assert phase_begins(series) == [(6, 2), (10, 3)]
    steps, values = parted(*series["val/phase_loss"], [6, 10])
    assert [step for step, value in zip(steps, values, strict=True) if math.isnan(value)] == [6, 10]
    assert draw_curves(corpus / "run", "run") is not None


def test_without_stop_the_last_phase_goes_on(corpus: Path) -> None:
    given = settings(
        corpus, "run", trainer__max_steps=15, callbacks__checkpoint={"save_every": None, "save_best": False}
    )
    given["callbacks"]["curriculum"]["stop"] = False
    standins.train(given)
    summary = json.loads((corpus / "run" / "summary.json").read_text())
    assert (summary["status"], summary["step"], summary["curriculum"]["completed"]["step"]) == ("finished", 15, 12)


@pytest.mark.parametrize(
    ("save_every", "environment"),
    [
        # 2 micro-batches a step. Decisions at 4 and 8 hold from 6 and 10 on.
        (4, {"KILL_AT_CALL": "13"}),  # in step 7: goes on from 4, where the decision was taken and does not hold yet
        (7, {"KILL_AT_CALL": "22"}),  # in step 11: from 7, in the climb of the rate, one evaluation into the phase
    ],
)
def test_a_killed_curriculum_resumes_bit_for_bit(corpus: Path, save_every: int, environment: dict[str, str]) -> None:
    options: dict[str, Any] = {
        "trainer__accumulate_grad_batches": 2,
        "callbacks__checkpoint": {"save_every": save_every, "save_best": True},
    }
    standins.train(settings(corpus, "whole", **options))
    killed = settings(corpus, "killed", **options)
    run_killed(killed, **environment)
    before = weights(corpus / "killed")["bouton"]["step"]
    assert 0 < before < 12
    standins.train({**killed, "ckpt_path": "last"})
    assert_same_run(corpus / "whole", corpus / "killed")
    a, b = (weights(corpus / name) for name in ("whole", "killed"))
    assert a["bouton"]["step"] == 12
    assert_same(a["callbacks"]["Curriculum"], b["callbacks"]["Curriculum"])
    assert_same(a["CurriculumDataModule"], b["CurriculumDataModule"])
    summaries = [json.loads((corpus / name / "summary.json").read_text()) for name in ("whole", "killed")]
    assert summaries[0]["curriculum"] == summaries[1]["curriculum"]
    standins.train({**killed, "ckpt_path": "last"})  # a completed run stays completed
    assert weights(corpus / "killed")["bouton"]["step"] == 12


def test_two_ranks_decide_as_one_with_twice_the_batch(corpus: Path) -> None:
    one = settings(corpus, "one", data__batch_size=4, model__dropout=0.0)
    standins.train(one)
    two = settings(corpus, "two", data__batch_size=2, model__dropout=0.0, trainer__devices=2)
    standins.train_on_ranks(two, 2)
    a, b = (rows(corpus / name) for name in ("one", "two"))
    for column in ("phase", "train/loss", "val/loss", "val/phase_loss", "val/accuracy"):
        values = [[float(row[column]) for row in table if row[column]] for table in (a, b)]
        assert values[0] == pytest.approx(values[1], rel=1e-5), column
    told = [json.loads((corpus / name / "summary.json").read_text())["curriculum"] for name in ("one", "two")]
    assert [t["step"] for t in told[0]["transitions"]] == [t["step"] for t in told[1]["transitions"]] == [4, 8]
    states = [weights(corpus / name)["CurriculumDataModule"]["phase_starts"] for name in ("one", "two")]
    assert states[0] == states[1] == [0, 5 * 4, 9 * 4]


def test_a_run_that_ends_too_early_says_so_and_another_curriculum_is_not_continued(corpus: Path, caplog: Any) -> None:
    given = settings(corpus, "run", trainer__max_steps=3)
    standins.train(given)
    assert "ended in phase words (1 of 3): no phrases, talks" in caplog.text
    assert json.loads((corpus / "run" / "summary.json").read_text())["curriculum"]["phase"] == "words"
    given["data"]["phases"]["phrases"]["length"] = 12
    with pytest.raises(CheckpointError, match=r"data\.phases or data\.replay: the checkpoint was trained with others"):
        standins.train({**given, "ckpt_path": "last"})


# -- configuration ----------------------------------------------------------------------------------------------------


def config(**changes: Any) -> dict[str, Any]:
    shipped = standins.OmegaConf.to_container(standins.OmegaConf.load(standins.CONF / "callbacks" / "curriculum.yaml"))
    assert isinstance(shipped, dict)
    return {**shipped["curriculum"], **changes}


def test_the_shipped_configuration_is_the_rule_of_the_specification() -> None:
    assert set(config()) == set(FIELDS)
    built = build_curriculum(config())
    assert isinstance(built, Curriculum)
    assert (built.rule.patience, built.rule.min_improvement, built.warmup_steps) == (3, 0.01, 100)
    assert built.warmed(build_schedule({"name": "constant", "warmup_steps": 0}, 9))(5) == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patience": 0}, r"callbacks\.curriculum\.patience = 0 is not valid"),
        ({"min_improvement": 1.5}, r"callbacks\.curriculum\.min_improvement = 1\.5 is not valid: a number >= 0"),
        ({"smoothing": True}, r"callbacks\.curriculum\.smoothing = True is not valid"),
        ({"min_evaluations": 9, "max_evaluations": 4}, r"max_evaluations = 4 is less than .*min_evaluations = 9"),
        ({"warmup_steps": -1}, r"callbacks\.curriculum\.warmup_steps = -1 is not valid: an integer >= 0"),
    ],
)
def test_values_out_of_range(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build_curriculum(config(**changes))
    assert "\n" not in str(caught.value)


def test_phases_and_callback_need_each_other() -> None:
    several = {"name": "curriculum", "phases": {"a": {}, "b": {}}}
    single = {"name": "curriculum", "phases": {"a": {}, "b": None}}
    trainer, rule = {"val_every": 10}, {"curriculum": config()}
    check_phases(several, rule, trainer)
    check_phases(single, {"curriculum": None}, trainer)  # a plain mixture
    check_phases({"name": "stdlib"}, {"curriculum": None}, trainer)
    cases: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any], str]] = [
        (several, {"curriculum": None}, trainer, "2 phases .*add callbacks=curriculum"),
        ({"name": "stdlib"}, rule, trainer, "needs data with phases, not data=stdlib"),
        (several, rule, {"val_every": None}, r"trainer\.val_every = null"),
    ]
    for data, callbacks, given, message in cases:
        with pytest.raises(ConfigError, match=message) as caught:
            check_phases(data, callbacks, given)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["curriculum", "curriculum_tiny"])
def test_the_shipped_experiments_fit_together(name: str) -> None:
    cfg: Any = standins.OmegaConf.to_container(bouton.compose(f"experiment=real_sam/{name}"), resolve=True)
    check_phases(cfg["data"], cfg["callbacks"], cfg["trainer"])
    assert isinstance(build_curriculum(cfg["callbacks"]["curriculum"]), Curriculum)
    assert [phase.length for phase in build_datamodule(cfg["data"]).phases] == [8, 16, 32, 64, 128]  # type: ignore[attr-defined]
    assert cfg["model"]["body"] == "spiking" and set(cfg["mechanism"]) == {"diversity", "environment", "firing_rate"}
    assert name != "curriculum" or build(cfg, device="meta").num_parameters() == 6_048_512  # real_sam/v4


def test_spiking_neurons_go_through_the_five_phases(tmp_path: Path) -> None:
    cfg = bouton.compose(
        "experiment=real_sam/curriculum_tiny", "model.num_layers=1", "model.hidden_size=24", "model.code_size=16",
        "kernels=torch", "data.sources.stdlib.max_bytes=150000", "data.batch_size=2", "data.tokenizer.kind=bytes",
        "data.val_tokens=512", "data.phase_val_tokens=256", "trainer.val_every=2", "callbacks.throughput.mfu=false",
        "callbacks.curriculum.max_evaluations=1", "callbacks.progress.refresh_every=null",
        f"data.cache_dir={tmp_path / 'cache'}", f"run_dir={tmp_path / 'run'}",
    )  # fmt: skip
    train(cfg)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    told = summary["curriculum"]
    names = ["words", "phrases", "sentences", "stories", "conversations"]
    assert [(t["from"], t["to"]) for t in told["transitions"]] == list(itertools.pairwise(names))
    assert (summary["status"], told["completed"]["from"]) == ("curriculum completed", "conversations")
    stress = weights(tmp_path / "run")["state_dict"]
    assert any("environment" in name for name in stress), "organism state goes on from phase to phase"
