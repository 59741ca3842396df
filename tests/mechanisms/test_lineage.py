"""The lineage file: births, deaths, and what a run that resumes forgets."""

from __future__ import annotations

from pathlib import Path

from bouton.mechanisms.lineage import Lineage


def test_births_and_deaths_are_written_and_forgotten(tmp_path: Path) -> None:
    assert Lineage.read(tmp_path) is None
    lineage = Lineage([[], []])
    lineage.birth(0, 0, None, 0, 0)
    lineage.birth(0, 1, None, 0, 1)
    lineage.birth(0, 2, 0, 10, 2)
    lineage.death(0, 1, 2, 20)
    lineage.write(tmp_path)
    read = Lineage.read(tmp_path)
    assert read is not None and read.blocks == lineage.blocks
    assert [(one["id"], one["parent"], one["died"], one["merged_into"]) for one in read.blocks[0]] == [
        (0, None, None, None),
        (1, None, 20, 2),
        (2, 0, None, None),
    ]
    read.forget_after(15)
    assert [one["died"] for one in read.blocks[0]] == [None, None, None]
    read.forget_after(5)
    assert [one["id"] for one in read.blocks[0]] == [0, 1]
