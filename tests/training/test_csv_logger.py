from __future__ import annotations

from pathlib import Path

from bouton.training.csv_logger import CsvLogger


def logger(folder: Path, resume: int | None = None) -> CsvLogger:
    result = CsvLogger(folder, resume)
    result.open()
    return result


def fill(log: CsvLogger, first: int, last: int) -> None:
    for step in range(first, last + 1):
        log.log_metrics({"train/loss": step / 3, "cost/seconds": 1.0}, step)
        if step % 2 == 0:
            log.log_metrics({"val/loss": step / 7, "vitals/presyn/pool": step / 9}, step)


def test_metrics_of_a_step_share_a_row_and_new_columns_go_right(tmp_path: Path) -> None:
    log = logger(tmp_path)
    fill(log, 1, 3)
    log.finalize("success")
    assert (tmp_path / "metrics.csv").read_text() == (
        f"step,train/loss,val/loss\n1,{1 / 3!r},\n2,{2 / 3!r},{2 / 7!r}\n3,1,\n"
    )
    assert (tmp_path / "vitals.csv").read_text() == f"step,presyn/pool\n2,{2 / 9!r}\n"
    assert (tmp_path / "costs.csv").read_text().startswith("step,seconds\n1,1\n")


def test_rows_after_the_checkpoint_are_dropped_and_written_again(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    fill(log := logger(whole), 1, 9)
    log.save()
    fill(log := logger(cut), 1, 7)
    log.save()
    with (cut / "metrics.csv").open("a") as file:
        file.write("8,0.12")  # a kill in the middle of a row
    fill(log := logger(cut, resume=4), 5, 9)
    log.save()
    for name in ("metrics.csv", "vitals.csv", "costs.csv"):
        assert (cut / name).read_text() == (whole / name).read_text()


def test_a_row_that_was_written_can_be_completed(tmp_path: Path) -> None:
    log = logger(tmp_path)
    log.log_metrics({"a": 1.5}, 1)
    log.log_metrics({"a": 2.5}, 2)
    log.save()
    log = logger(tmp_path, resume=2)
    log.log_metrics({"b": 0.5}, 2)
    log.save()
    log.log_metrics({"c": 0.25}, 2)
    log.save()
    assert (tmp_path / "metrics.csv").read_text() == "step,a,b,c\n1,1.5,,\n2,2.5,0.5,0.25\n"


def test_a_new_run_begins_anew(tmp_path: Path) -> None:
    fill(log := logger(tmp_path), 1, 3)
    log.save()
    fill(log := logger(tmp_path), 1, 1)
    log.save()
    assert (tmp_path / "metrics.csv").read_text() == f"step,train/loss\n1,{1 / 3!r}\n"
